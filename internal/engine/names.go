package engine

import (
	"fmt"
	"math/rand/v2"
	"os"
)

var (
	nameFirst = []string{
		"amber", "brisk", "calm", "clever", "dapper", "eager", "fair", "gentle", "hardy", "keen", "lively", "mellow",
		"nimble", "patient", "plucky", "quiet", "ready", "sober", "steady", "sunny", "tidy", "vivid", "wary", "witty",
	}
	nameLast = []string{
		"bass", "bream", "carp", "char", "cod", "crab", "dace", "eel", "gar", "goby", "heron", "krill",
		"ling", "loach", "otter", "perch", "pike", "prawn", "roach", "ruffe", "salmon", "shad", "tench", "trout",
	}
)

// freeName makes up a name that was not taken a moment ago; reserve decides.
func (e *Engine) freeName() string {
	pick := func(words []string) string { return words[rand.IntN(len(words))] }
	name := pick(nameFirst) + "-" + pick(nameLast)
	for {
		if _, err := os.Stat(e.namePath(name)); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%s-%d", pick(nameFirst), pick(nameLast), rand.IntN(10000))
	}
}
