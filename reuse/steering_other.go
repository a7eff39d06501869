//go:build !linux

package reuse

// steering is false where the kernel cannot be told which socket gets a connection. Members
// then share their address by the kernel's own rule.
const steering = false
