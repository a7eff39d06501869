//go:build race

package launcher_test

// raceDetector says that the race detector is built in.
const raceDetector = true
