package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// With --seal the outputs are sealed when the input is drained: those that --put
// names, and the streams that runs wrote as GEARSFS_OUT/KEY. Which these are
// only the runs know, and their workers may be gone by then. So a worker that
// writes to one for the first time notes it, in the same transaction, in the
// stream KEY.outputs of the input, in which each is once by its id. Whoever finds
// the input drained seals all that are noted there and drops the notes; who does
// the same beside it finds all of them, or none because they are sealed.

// outputsSuffix makes of an input's key that of the stream of such notes.
const outputsSuffix = ".outputs"

// notes is where the outputs are noted; ok is false where there can be no such
// stream.
func (w *worker) notes() (key gearsfs.Key, ok bool) {
	key = w.inputs[0].key + outputsSuffix
	return key, w.seal && key.Check() == nil
}

// note is what notes an output of that name, nil where that was done.
func (w *worker) note(name string) *dgm.Put {
	key, ok := w.notes()
	w.mu.Lock()
	done := w.noted[name]
	w.mu.Unlock()
	if !ok || done {
		return nil
	}
	text := w.outputs[0].path + "\x00" + name
	id := sha256.Sum256([]byte(text))
	in := w.inputs[0]
	return &dgm.Put{
		File: in.file(), Key: key, Mode: 0o666 &^ w.umask,
		Records: []gearsfs.NewRecord{{Data: []byte(text), ID: hex.EncodeToString(id[:])}},
	}
}

// hasNoted remembers what is noted.
func (w *worker) hasNoted(names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noted == nil {
		w.noted = make(map[string]bool)
	}
	for _, name := range names {
		w.noted[name] = true
	}
}

// sealOutputs seals the outputs, if the input is drained. All workers that wait
// until then do it, so it does not matter which is last, or dies before.
func (w *worker) sealOutputs(ctx context.Context, ended bool) error {
	in := w.inputs[0]
	if !ended {
		_, err := in.Peek(ctx, dgm.Peek{File: in.file(), Key: in.key, NoWait: true})
		if !errors.Is(err, gearsfs.ErrEnd) {
			return nil
		}
	}
	for _, out := range w.outputs {
		if err := w.sealOutput(ctx, out, out.file(), out.key); err != nil {
			return err
		}
	}
	key, ok := w.notes()
	if !ok {
		return nil
	}
	var after gearsfs.Seq
	for {
		noted, err := in.Peek(ctx, dgm.Peek{File: in.file(), Key: key, NoWait: true, Follow: true, After: after, Max: gearsfs.BatchRecordsMax})
		switch {
		case errors.Is(err, gearsfs.ErrEmpty) && after == 0, errors.Is(err, gearsfs.ErrNotFound):
			return nil
		case drained(err):
			return cause(ctx, in.Configure(ctx, in.file(), key, dgm.StreamChange{Drop: true}))
		case err != nil:
			return fmt.Errorf("%s %s: %w", in.arg, key, cause(ctx, err))
		}
		for _, r := range noted {
			after = r.Place.Seq
			path, name, ok := strings.Cut(string(r.Data), "\x00")
			if !ok || gearsfs.Key(name).Check() != nil {
				continue // somebody else's
			}
			if err := w.sealOutput(ctx, in.volumeStream, gearsfs.At(path), gearsfs.Key(name)); err != nil {
				return err
			}
		}
	}
}

func (w *worker) sealOutput(ctx context.Context, s volumeStream, file gearsfs.File, key gearsfs.Key) error {
	_, err := s.Put(ctx, dgm.Put{File: file, Key: key, Mode: 0o666 &^ w.umask, Seal: true})
	if err != nil && !errors.Is(err, gearsfs.ErrSealed) {
		return fmt.Errorf("seal %s of %s: %w", key, s.arg, cause(ctx, err))
	}
	return nil
}
