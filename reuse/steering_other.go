//go:build !linux

package reuse

// canSteer is false where the kernel cannot be told which socket gets a connection. Members
// then share their address by the kernel's own rule.
const canSteer = false
