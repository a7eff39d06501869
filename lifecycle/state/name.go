package state

import (
	"fmt"
	"path/filepath"
	"strings"
)

const maxName = 48 // bytes of a service's name

// ValidName returns nil for a name that a service may have: 1 to 48 of a-z, 0-9, dot,
// underscore and hyphen, the first one a letter or a digit.
func ValidName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("service name is empty")
	case len(name) > maxName:
		return fmt.Errorf("service name %.60q is longer than %d bytes", name, maxName)
	case !alphanumeric(name[0]):
		return fmt.Errorf("service name %q does not begin with a-z or 0-9", name)
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return fmt.Errorf("service name %q has %q in it: only a-z, 0-9, dot, underscore and hyphen", name, name[i])
		}
	}
	return nil
}

func alphanumeric(b byte) bool { return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' }

func nameByte(b byte) bool { return alphanumeric(b) || b == '.' || b == '_' || b == '-' }

// DefaultName makes a valid name from a command: its base name in lower case, what a
// name must not have as a hyphen. It is "service" where nothing is left.
func DefaultName(command string) string {
	name := []byte(strings.ToLower(filepath.Base(command)))
	for i, b := range name {
		if !nameByte(b) {
			name[i] = '-'
		}
	}
	s := strings.TrimLeft(string(name), "._-")
	s = strings.TrimRight(s[:min(len(s), maxName)], "-")
	if s == "" {
		return "service"
	}
	return s
}
