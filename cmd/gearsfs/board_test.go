package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTallyLine(t *testing.T) {
	assert.Equal(t, "0 done, 0 failed, 7 left", tally{left: 7}.line())
	assert.Equal(t, "10 done, 2 failed (1 died), 90 left, 2.5/s, 36s to go", tally{done: 10, failed: 2, died: 1, left: 90, rate: 2.5}.line())
}

// What is written past a board does not stand behind its line.
func TestBoard(t *testing.T) {
	var out bytes.Buffer
	a := &app{errs: &out}
	b := startBoard(a)
	assert.False(t, b.terminal)
	a.notef("one")
	b.draw(tally{})
	a.notef("two")
	b.draw(tally{})
	b.end()
	b.end()
	assert.Equal(t, "gearsfs: one\n\r\x1b[K0 done, 0 failed, 0 left\r\x1b[Kgearsfs: two\n\r\x1b[K0 done, 0 failed, 0 left\r\x1b[K", out.String())
	assert.Equal(t, &out, a.errs)
}
