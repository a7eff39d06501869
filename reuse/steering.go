package reuse

// steering is false where members share their address by the kernel's own rule.
var steering = canSteer

// Unsteered turns steering off for this process, as on platforms that have none: no gate, no
// placeholder, no program. It is the negative control of loss tests, and must be called before
// anything else of the package.
func Unsteered() { steering = false }
