//go:build !linux

package sockdiag

import (
	"errors"
	"testing"
)

func TestOtherPlatformsSaySo(t *testing.T) {
	if _, err := Open(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Open: %v", err)
	}
	if _, err := Owners(1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Owners: %v", err)
	}
}
