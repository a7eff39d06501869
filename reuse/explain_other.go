//go:build !linux

package reuse

func explain(err error) error { return err }
