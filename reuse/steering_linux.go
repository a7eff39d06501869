package reuse

const steering = true
