package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs/wordcount"
)

// barEvery is how often a bar is drawn.
const barEvery = 200 * time.Millisecond

// bar shows on a terminal how far a count is, and nothing elsewhere.
type bar struct {
	out   io.Writer // nil: show nothing
	size  int64     // -1 where it is not known
	began time.Time
	drawn time.Time // zero: not yet
}

func newBar(out io.Writer, in input) *bar {
	b := &bar{size: in.size, began: time.Now()}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		b.out = out
	}
	return b
}

// show is told of progress, one call at a time.
func (b *bar) show(p wordcount.Progress) {
	now := time.Now()
	if b.out == nil || now.Sub(b.drawn) < barEvery || now.Sub(b.began) < barEvery {
		return
	}
	b.drawn = now
	rate := float64(p.Counted) / now.Sub(b.began).Seconds() / (1 << 20)
	line := fmt.Sprintf("%d MiB sent, %d MiB counted, %.0f MiB/s", p.Sent>>20, p.Counted>>20, rate)
	if b.size > 0 {
		done := min(float64(p.Counted)/float64(b.size), 1)
		const width = 30
		full := int(done * width)
		line = fmt.Sprintf("[%s%s] %3.0f %%, %.0f MiB/s", strings.Repeat("#", full), strings.Repeat(".", width-full), 100*done, rate)
	}
	fmt.Fprintf(b.out, "\r\x1b[K%s", line)
}

// clear removes what was drawn.
func (b *bar) clear() {
	if !b.drawn.IsZero() {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
