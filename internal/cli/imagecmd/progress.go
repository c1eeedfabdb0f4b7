package imagecmd

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"creel/internal/cli/command"
	"creel/internal/image"
	"creel/internal/printable"

	"github.com/docker/go-units"
)

// progress shows the steps of a pull or push: bars that are drawn again where
// a person watches, a line for each part that is finished elsewhere.
type progress struct {
	w    io.Writer
	live bool

	mu    sync.Mutex
	order []string
	parts map[string]image.Event
	drawn int // lines on the screen
	last  time.Time
}

const (
	barWidth   = 24
	redrawWait = 100 * time.Millisecond
)

func newProgress(w io.Writer) *progress {
	return &progress{w: command.Raw(w), live: command.IsTerminal(w), parts: map[string]image.Event{}}
}

// event takes one step; several goroutines may call it at once.
func (p *progress) event(e image.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.parts[e.ID]
	if !known {
		p.order = append(p.order, e.ID)
	}
	p.parts[e.ID] = e
	switch {
	case p.live && (before.Kind != e.Kind || time.Since(p.last) >= redrawWait):
		p.draw()
	case !p.live && before.Kind != e.Kind && e.Kind != image.Waiting:
		fmt.Fprintln(p.w, describeEvent(e))
	}
}

// end leaves the last state on the screen.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		p.draw()
	}
}

func (p *progress) draw() {
	p.last = time.Now()
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA", p.drawn)
	}
	for _, id := range p.order {
		fmt.Fprintf(p.w, "\r\x1b[K%s\n", bar(p.parts[id]))
	}
	p.drawn = len(p.order)
}

func bar(e image.Event) string {
	if e.Total <= 0 || e.Kind != image.Downloading && e.Kind != image.Pushing {
		return describeEvent(e)
	}
	full := int(barWidth * min(e.Current, e.Total) / e.Total)
	return fmt.Sprintf("%-12s [%s%s] %s of %s", partName(e.ID), strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		units.HumanSize(float64(e.Current)), units.HumanSize(float64(e.Total)))
}

func describeEvent(e image.Event) string {
	words := map[image.EventKind]string{
		image.Waiting: "waiting", image.Downloading: "downloading", image.Exists: "is there already",
		image.Done: "done", image.Converting: "building the root file system", image.Pushing: "pushing",
	}
	line := fmt.Sprintf("%-12s %s", partName(e.ID), words[e.Kind])
	if e.Total > 0 && (e.Kind == image.Downloading || e.Kind == image.Pushing) {
		line += ", " + units.HumanSize(float64(e.Total))
	}
	return line
}

// partName is a digest cut short, or a name as it is.
func partName(id string) string {
	if strings.HasPrefix(id, "sha256:") {
		return command.ShortID(id)
	}
	return printable.Line(id)
}
