package main

import (
	"context"
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// ackWatch waits until records are gone from their stream.
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
	for _, run := range w.runs {
		_, err := w.Peek(ctx, dgm.Peek{File: w.file(), Key: w.key, After: run.first - 1, Gone: run.last})
		switch {
		case err == nil, drained(err):
		case errors.Is(err, gearsfs.ErrNotFound), errors.Is(err, gearsfs.ErrRemoved):
			return nil // they went with their file
		default:
			return cause(ctx, err)
		}
	}
	return nil
}
