package launcher

import "overlap/reuse/intercept"

// Main must be the first thing that main, and a TestMain, calls in a program that uses [Run]:
// it returns at once, unless this process is the step that becomes a launched program.
func Main() { intercept.Main() }
