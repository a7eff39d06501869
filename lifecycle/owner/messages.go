package owner

// The messages of a session. N calls hello, reserve, yield, event, switched, leaving and return; O calls
// released.
const (
	opHello    = "hello"
	opReserve  = "reserve"
	opYield    = "yield"
	opEvent    = "event"
	opSwitched = "switched"
	// opLeaving says that N ends on purpose: O must not come back for it.
	opLeaving = "leaving"
	// opReturn says that N ends at once, and has O take its connections back.
	opReturn = "return"
	// opReleased says that O can't take the connections back any more.
	opReleased = "released"
)

// hello introduces a new generation.
type hello struct {
	Generation int    `json:"generation"`
	PID        int    `json:"pid"`
	Token      string `json:"token,omitempty"`
	// Supervised is true where the newcomer must not exit either: it is no start by hand that
	// could become a reload, but another container, say, and takes over.
	Supervised bool `json:"supervised,omitempty"`
}

// welcome is the answer of the generation that was asked.
type welcome struct {
	Generation int `json:"generation"`
	// Serving is false where the generation has nothing to hand over.
	Serving bool `json:"serving"`
	// Supervised is true where the process must not exit.
	Supervised bool `json:"supervised,omitempty"`
	// Holding is true where the generation has no program to return to.
	Holding   bool       `json:"holding,omitempty"`
	Listeners []listener `json:"listeners,omitempty"`
}

// listener is an address with its sockets.
type listener struct {
	Network string   `json:"network"`
	Address string   `json:"address"`
	V6Only  bool     `json:"v6only,omitempty"`
	UID     int      `json:"uid"`
	Inodes  []uint64 `json:"inodes,omitempty"`
	// Sockets are the inodes with those of the placeholders.
	Sockets []uint64 `json:"sockets,omitempty"`
	// Unused says that nothing has listened there yet.
	Unused bool `json:"unused,omitempty"`
}

// place names an address in a reserve message.
type place struct {
	Network string `json:"network"`
	Address string `json:"address"`
}

// reserved is the answer to one: the sockets that are there now, placeholders too.
type reserved struct {
	Sockets []uint64 `json:"sockets,omitempty"`
}

// event is how far the new generation got.
type event struct {
	Kind string `json:"kind"`
	Text string `json:"text,omitempty"`
}

// switched is said once the new generation gets the connections.
type switched struct {
	// Micros is how long the switch of all addresses took, in microseconds.
	Micros int64 `json:"micros"`
}
