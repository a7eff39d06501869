// Package trial turns single mechanisms off, for the negative controls of the tests: the same
// test must then see loss. Nothing but a test's main function sets anything here, before
// anything else runs.
package trial

var (
	// ProofOff lets go of listeners without the proof that nothing is left in them.
	ProofOff bool
	// AnnounceOff does not tell clients that their connections end.
	AnnounceOff bool
	// PartingOff leaves connections between two requests open until the program is stopped.
	PartingOff bool
	// Step, if not nil, is called at each step of a handover, for crashes on purpose.
	Step func(name string)
)

// At marks a step of a handover.
func At(name string) {
	if Step != nil {
		Step(name)
	}
}
