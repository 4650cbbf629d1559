package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// boardEvery is how often a board is drawn.
const boardEvery = 500 * time.Millisecond

// board shows on a terminal how far a worker is, in the last line, and passes on
// what else goes to standard error. Elsewhere it only passes on.
type board struct {
	app      *app
	under    io.Writer
	terminal bool

	mu    sync.Mutex
	drawn bool
}

// startBoard puts itself between the app and its standard error, but where that
// is a file that others may be given; end takes it away.
func startBoard(a *app) *board {
	b := &board{app: a, under: a.errs}
	f, isFile := a.errs.(*os.File)
	b.terminal = isFile && isTerminal(f)
	if b.terminal || !isFile {
		a.errs = b
	}
	return b
}

func (b *board) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clearLocked()
	b.app.errs = b.under
}

// clear makes room for what is written past the board.
func (b *board) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clearLocked()
}

func (b *board) clearLocked() {
	if b.drawn {
		fmt.Fprint(b.under, "\r\x1b[K")
		b.drawn = false
	}
}

// Write implements io.Writer for what is no progress.
func (b *board) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clearLocked()
	return b.under.Write(p)
}

// tally is how far a worker is.
type tally struct {
	done, failed, died uint64
	running            int
	left               uint64 // records of the input that are not done
	rate               float64
}

// line is what a board shows.
func (t tally) line() string {
	line := fmt.Sprintf("%d done, %d failed", t.done, t.failed)
	if t.died > 0 {
		line += fmt.Sprintf(" (%d died)", t.died)
	}
	line += fmt.Sprintf(", %d left", t.left)
	if t.rate > 0 {
		line += fmt.Sprintf(", %.1f/s", t.rate)
		if togo := float64(t.left) / t.rate; t.left > 0 && togo < 1e8 {
			line += ", " + time.Duration(togo*float64(time.Second)).Truncate(time.Second).String() + " to go"
		}
	}
	return line
}

func (b *board) draw(t tally) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.under, "\r\x1b[K%s", t.line())
	b.drawn = true
}
