package launcher

import "overlap/reuse/intercept"

// Main must be the first thing that main, and a TestMain, calls in a program that uses [Run]:
// it returns at once, unless this process is a child that learns for a launcher what the kernel lets it do.
func Main() { intercept.Main() }
