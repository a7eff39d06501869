package state

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// passable is the mode of root's directories. What is in them can't be listed, and is 0600 but for what the
// program of a generation must reach.
const passable fs.FileMode = 0o711

// LetThrough lets processes of other users through to what is in the directory and open to them. It is
// for root, whose programs may become any user, and does nothing for others. The error, where a directory
// above keeps them out, names that; the service's own and the system's state directory are opened.
func (d *Dir) LetThrough() error {
	if os.Geteuid() != 0 || d.uid != 0 {
		return nil
	}
	if err := d.dir.Chmod(passable); err != nil {
		return err
	}
	root := filepath.Dir(d.path)
	if root == systemRoot { // an older version's
		if err := os.Chmod(root, passable); err != nil {
			return err
		}
	}
	above, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	for {
		info, err := os.Stat(above)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("others can't enter %s (mode %04o): %w", above, info.Mode().Perm(), fs.ErrPermission)
		}
		parent := filepath.Dir(above)
		if parent == above {
			return nil
		}
		above = parent
	}
}
