// Package names makes up names for sandboxes that were given none. The package
// must not know which are taken.
package names

import (
	"fmt"
	"math/rand/v2"
)

var (
	first = []string{
		"amber", "brisk", "calm", "clever", "dapper", "eager", "fair", "gentle", "hardy", "keen", "lively", "mellow",
		"nimble", "patient", "plucky", "quiet", "ready", "sober", "steady", "sunny", "tidy", "vivid", "wary", "witty",
	}
	last = []string{
		"bass", "bream", "carp", "char", "cod", "crab", "dace", "eel", "gar", "goby", "heron", "krill",
		"ling", "loach", "otter", "perch", "pike", "prawn", "roach", "ruffe", "salmon", "shad", "tench", "trout",
	}
)

// New makes up a name that is not taken, as far as taken knows.
func New(taken func(name string) bool) string {
	pick := func(words []string) string { return words[rand.IntN(len(words))] }
	name := pick(first) + "-" + pick(last)
	for taken(name) {
		name = fmt.Sprintf("%s-%s-%d", pick(first), pick(last), rand.IntN(10000))
	}
	return name
}
