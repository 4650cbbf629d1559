package main

import (
	"context"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// transactStepsMax is how many steps dgm.Transact has room for.
const transactStepsMax = 64

// bundle is what runs put in one transaction: at most BatchBytesMax, in at most
// transactStepsMax-1 puts, of BatchRecordsMax at most.
type bundle struct {
	puts  []*dgm.Put // each to a stream of its own
	bytes int
	noted []string // outputs by GEARSFS_OUT that they note
}

// bundle makes the puts of a run out of what it wrote. What no transaction has
// room for is a failure.
func (w *worker) bundle(y yield) (bundle, error) {
	var b bundle
	for _, out := range w.outputs {
		b.add(w.put(out.target, out.key, y.stdout), len(y.stdout))
	}
	for i, name := range y.names {
		p := w.put(w.outputs[0].target, gearsfs.Key(name), y.files[i])
		if note := w.note(name); note != nil && len(p.Records) > 0 {
			b.add(note, 0)
			b.noted = append(b.noted, name)
		}
		b.add(p, len(y.files[i]))
	}
	return b, b.check()
}

// put is what a run puts into an output.
func (w *worker) put(to target, key gearsfs.Key, data []byte) *dgm.Put {
	return &dgm.Put{File: to.file(), Key: key, Records: w.cut(data), Mode: 0o666 &^ w.umask}
}

// add adds what is put, made of so many bytes, behind what goes to the same
// stream already.
func (b *bundle) add(p *dgm.Put, bytes int) {
	if len(p.Records) == 0 {
		return
	}
	b.bytes += bytes
	for _, there := range b.puts {
		if there.File == p.File && there.Key == p.Key {
			there.Records = append(there.Records, p.Records...)
			return
		}
	}
	b.puts = append(b.puts, p)
}

// join adds another run's bundle, and reports whether one transaction has room
// for both.
func (b *bundle) join(other bundle) bool {
	for _, p := range other.puts {
		b.add(p, 0)
	}
	b.bytes += other.bytes
	b.noted = append(b.noted, other.noted...)
	return b.check() == nil
}

// check returns a failure where a transaction has no room.
func (b *bundle) check() error {
	if b.bytes > gearsfs.BatchBytesMax {
		return failuref("wrote more than the %d MiB that a transaction has room for", gearsfs.BatchBytesMax>>20)
	}
	if len(b.puts) > transactStepsMax-1 {
		return failuref("wrote more than the %d files and outputs that a transaction has room for", transactStepsMax-1)
	}
	for _, p := range b.puts {
		if len(p.Records) > gearsfs.BatchRecordsMax {
			return failuref("wrote more than the %d lines that a transaction has room for", gearsfs.BatchRecordsMax)
		}
	}
	return nil
}

// acknowledge acknowledges inputs and makes puts, in one step. It waits for
// room in the outputs unless noWait.
func (w *worker) acknowledge(ctx context.Context, receipts []gearsfs.Receipt, b bundle, noWait bool) error {
	m := w.inputs[0].Manager
	settle := &dgm.Settle{Receipts: receipts}
	if len(b.puts) == 0 {
		return m.Settle(ctx, *settle)
	}
	steps := []dgm.Step{{Settle: settle}}
	for _, p := range b.puts {
		steps = append(steps, dgm.Step{Put: p})
	}
	_, err := m.Transact(ctx, dgm.Transact{Steps: steps, NoWait: noWait})
	if err == nil {
		w.hasNoted(b.noted)
	}
	return err
}
