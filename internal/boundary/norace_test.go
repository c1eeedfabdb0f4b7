//go:build !race

package boundary

const slower = 1
