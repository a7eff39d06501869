package reuse

import "overlap/reuse/sockdiag"

// Holders are the pids of the processes that have a descriptor of a socket, as far as they can
// be seen.
func Holders(inode uint64) ([]int, error) {
	owners, err := sockdiag.Owners(inode)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, o := range owners[inode] {
		pids = append(pids, o.PID)
	}
	return pids, nil
}
