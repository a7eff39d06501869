package reuse

const canSteer = true
