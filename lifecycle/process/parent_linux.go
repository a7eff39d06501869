package process

// Parent returns the parent's pid, 0 where it cannot be told.
func Parent(pid int) int {
	s, err := readStat(pid)
	if err != nil {
		return 0
	}
	return s.parent
}
