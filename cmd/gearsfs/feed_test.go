package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A take is for many sets where runs are short, and for what is missing where a
// slot waits.
func TestFeederTakesMany(t *testing.T) {
	for _, c := range []struct {
		idle, queued int
		typical      time.Duration
		want         int
	}{
		{idle: 2, want: 2},
		{idle: 0, want: 0},
		{typical: time.Second, idle: 1, want: 1},
		{typical: time.Second, want: 0},
		{typical: 2 * time.Millisecond, queued: 64, want: 0},
		{typical: 2 * time.Millisecond, queued: 33, want: 0},
		{typical: 2 * time.Millisecond, queued: 32, want: 32},
		{typical: 2 * time.Millisecond, idle: 1, want: 65},
		{typical: 200 * time.Millisecond, want: 1},
	} {
		w := newWorker(bareApp(nil))
		w.jobs, w.inputs = 2, make([]source, 1)
		w.typical, w.idle, w.queue = c.typical, c.idle, make([]*set, c.queued)
		assert.Equal(t, c.want, w.roomLocked(), "%+v", c)
	}
}
