package owner

import (
	"errors"
	"fmt"

	"overlap/reuse"
)

var (
	// ErrStranger says that a process that is not of the service listens on the address.
	ErrStranger = reuse.ErrStranger
	// ErrOverlap says that an address covers one of the running generation's without being
	// equal to it.
	ErrOverlap = errors.New("address overlaps one of the running generation")
	// ErrOther says that a service of the same default name runs on other addresses.
	ErrOther = errors.New("a service of this name runs on other addresses")
	// ErrTakenBack says that the newcomer died during the drain and this generation serves again.
	ErrTakenBack = errors.New("the new generation died, this one serves again")
	// ErrBusy says that another reload of the service is under way.
	ErrBusy = errors.New("another handover is under way")
	// ErrSupervised says that the running generation must not exit, so nobody can take over from it.
	ErrSupervised = errors.New("the running generation is supervised and must not exit")
)

// StrangerError names a listener that is not of the service.
type StrangerError struct{ reuse.Stranger }

func (e *StrangerError) Error() string {
	who := "a process that cannot be seen"
	if e.PID != 0 {
		who = fmt.Sprintf("pid %d (%s)", e.PID, e.Command)
	}
	return fmt.Sprintf("%s is in use by %s, which is not of this service", e.Address, who)
}

// Unwrap makes the error an ErrStranger.
func (e *StrangerError) Unwrap() error { return ErrStranger }
