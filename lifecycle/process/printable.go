package process

import (
	"strings"
	"unicode"
)

// Printable is a text for a terminal: what cannot be printed is replaced by "?", so that who wrote it cannot
// write to the terminal of whoever reads it.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
