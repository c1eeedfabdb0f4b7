//go:build race

package boundary

// slower is how much the race detector costs, about.
const slower = 10
