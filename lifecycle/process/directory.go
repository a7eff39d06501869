package process

import (
	"os"
	"path/filepath"
)

// WorkingDirectory is this process's directory by its name in $PWD where that is right, so
// that a link on the way that moves is followed by whoever starts there later; "" where it
// can't be told.
func WorkingDirectory() string {
	wd, err := os.Getwd()
	if err != nil {
		return ""
	}
	pwd := os.Getenv("PWD")
	if !filepath.IsAbs(pwd) {
		return wd
	}
	a, aerr := os.Stat(pwd)
	b, berr := os.Stat(wd)
	if aerr == nil && berr == nil && os.SameFile(a, b) {
		return pwd
	}
	return wd
}
