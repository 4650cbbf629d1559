package main

import (
	"context"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// How often an ackWatch looks, at first and in the end.
const (
	ackLookFirst = 2 * time.Millisecond
	ackLookLast  = 250 * time.Millisecond
)

// ackWatch waits until records are gone from their stream. Nothing waits for
// that at the node, so it looks, for the oldest of them, less and less often.
type ackWatch struct {
	target
	key  gearsfs.Key
	runs []seqRun // rising
}

// seqRun are records that were put together.
type seqRun struct{ first, last gearsfs.Seq }

func (w *ackWatch) add(first, last gearsfs.Seq) {
	if n := len(w.runs); n > 0 && w.runs[n-1].last+1 == first {
		w.runs[n-1].last = last
		return
	}
	w.runs = append(w.runs, seqRun{first, last})
}

// wait returns when none of the records is left.
func (w *ackWatch) wait(ctx context.Context) error {
	pause := ackLookFirst
	for len(w.runs) > 0 {
		run := &w.runs[0]
		records, err := w.Peek(ctx, dgm.Peek{File: w.file(), Key: w.key, NoWait: true, Follow: true, After: run.first - 1})
		switch {
		case drained(err), errors.Is(err, gearsfs.ErrNotFound), errors.Is(err, gearsfs.ErrRemoved):
			w.runs = w.runs[1:]
			continue
		case err != nil:
			return cause(ctx, err)
		}
		oldest := records[0].Place.Seq
		if oldest > run.last {
			w.runs = w.runs[1:]
			continue
		}
		if oldest > run.first {
			run.first, pause = oldest, ackLookFirst
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, ackLookLast)
	}
	return nil
}
