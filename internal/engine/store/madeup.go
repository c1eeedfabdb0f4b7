package store

import (
	"fmt"
	"math/rand/v2"
	"os"
)

var (
	adjectives = []string{
		"amber", "brisk", "calm", "clever", "dapper", "eager", "fair", "gentle", "hardy", "keen", "lively", "mellow",
		"nimble", "patient", "plucky", "quiet", "ready", "sober", "steady", "sunny", "tidy", "vivid", "wary", "witty",
	}
	animals = []string{
		"bass", "bream", "carp", "char", "cod", "crab", "dace", "eel", "gar", "goby", "heron", "krill",
		"ling", "loach", "otter", "perch", "pike", "prawn", "roach", "ruffe", "salmon", "shad", "tench", "trout",
	}
)

// MakeUpName is a name that was not taken a moment ago; [Store.TakeName] decides.
func (s *Store) MakeUpName() string {
	taken := func(name string) bool { _, err := os.Stat(s.namePath(name)); return err == nil }
	pick := func(words []string) string { return words[rand.IntN(len(words))] }
	name := pick(adjectives) + "-" + pick(animals)
	for taken(name) {
		name = fmt.Sprintf("%s-%s-%d", pick(adjectives), pick(animals), rand.IntN(10000))
	}
	return name
}
