package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// wait returns when none of the records is left: an error says what became of
// those that nobody has acknowledged.
func (w *ackWatch) wait(ctx context.Context) error {
	for _, run := range w.runs {
		_, err := w.Peek(ctx, dgm.Peek{File: w.file(), Key: w.key, After: run.first - 1, Gone: run.last})
		if wentWithFile(err) {
			return errWentWithFile
		}
		if err != nil && !drained(err) {
			return cause(ctx, err)
		}
	}
	info, err := w.Stream(ctx, w.file(), w.key)
	if wentWithFile(err) {
		return errWentWithFile
	}
	if err != nil {
		return cause(ctx, err)
	}
	return w.verdict(&info)
}

var errWentWithFile = errors.New("on disk, but not acknowledged: removed with the file")

func wentWithFile(err error) bool {
	return errors.Is(err, gearsfs.ErrNotFound) || errors.Is(err, gearsfs.ErrRemoved)
}

// verdict says what became of records that are gone.
func (w *ackWatch) verdict(info *gearsfs.StreamInfo) error {
	var counts [gearsfs.Fates]uint64
	var dropped uint64
	for _, run := range w.runs {
		if info.Tail.Seq <= run.last { // the stream has begun anew
			dropped += uint64(run.last-run.first) + 1
			continue
		}
		for fate, n := range info.FatesOf(run.first, run.last) {
			counts[fate] += n
		}
	}
	var others []string
	tell := func(n uint64, what string) {
		if n > 0 {
			others = append(others, fmt.Sprintf("%d %s", n, what))
		}
	}
	tell(counts[gearsfs.FateDead], fmt.Sprintf("dead (in %s.dead)", w.key))
	for _, fate := range []gearsfs.Fate{gearsfs.FateDiscarded, gearsfs.FateCleared, gearsfs.FateMoved, gearsfs.FateUnknown} {
		tell(counts[fate], fate.String())
	}
	tell(dropped, "gone with the stream")
	if others == nil {
		return nil
	}
	return fmt.Errorf("on disk, but not acknowledged: %s", strings.Join(others, ", "))
}
