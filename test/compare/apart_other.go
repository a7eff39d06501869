//go:build !linux

package main

import "syscall"

// isolation is none: there are no network namespaces here.
func isolation(bool) *syscall.SysProcAttr { return nil }

func canIsolate() bool { return false }
