package dgm

import (
	"context"
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// fsckBytesPerSecond are read for who asks a node that serves others.
const fsckBytesPerSecond = 64 << 20

// Fsck checks this node's data: the tables, and all bytes of large payloads, of
// which it reads at most so many in a second; 0 is no bound. With repair it mends
// what other nodes have and frees what nothing refers to. progress, where it is
// not nil, is told on the same goroutine how far it is. gearsfs.ErrBusy while
// another check is under way.
func (v *Volume) Fsck(ctx context.Context, repair bool, rate int64, progress func(gearsfs.FsckReport)) (gearsfs.FsckReport, error) {
	if !v.enter() {
		return gearsfs.FsckReport{}, gearsfs.ErrClosed
	}
	defer v.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(v.busy, cancel)()
	report, err := v.payloads.Fsck(ctx, repair, rate, progress)
	if err != nil && v.busy.Err() != nil {
		err = gearsfs.ErrClosed
	}
	return report, err
}

// fsckCall is a check that a connection has asked for.
type fsckCall struct{ stop context.CancelFunc }

func (c fsckCall) cancel(error) { c.stop() }

// beginFsck has done called when this node has checked its data, or the caller
// does not want it any more.
func (v *Volume) beginFsck(trusted bool, who gearsfs.Caller, op *wire.Fsck, done func(*wire.Response)) canceller {
	if err := v.mayManage(trusted, who); err != nil {
		done(failure(err))
		return nil
	}
	ctx, stop := context.WithCancel(v.busy)
	begun := v.spawn(func() {
		defer stop()
		report, err := v.Fsck(ctx, op.Repair, fsckBytesPerSecond, nil)
		if err != nil {
			if errors.Is(err, context.Canceled) {
				err = gearsfs.ErrCancelled
			}
			done(failure(err))
			return
		}
		done(&wire.Response{Fsck: fsckToWire(report)})
	})
	if !begun {
		stop()
		done(failure(gearsfs.ErrClosed))
		return nil
	}
	return fsckCall{stop}
}

func fsckToWire(r gearsfs.FsckReport) *wire.FsckReport {
	w := &wire.FsckReport{
		Extents: r.Extents, Bytes: r.Bytes, Segments: r.Segments, Allocated: r.Allocated, Unreferenced: r.Unreferenced,
		Recent: r.Recent, Freed: r.Freed, Unswept: r.Unswept, Found: r.Found, Mended: r.Mended,
	}
	for _, f := range r.Faults {
		w.Faults = append(w.Faults, &wire.Fault{
			What: f.What, Path: f.Path, Ino: uint64(f.Ino), Key: string(f.Key), Pos: uint64(f.Pos), Bytes: f.Bytes,
			Segment: f.Segment, At: f.At, Reason: f.Reason, Mended: f.Mended,
		})
	}
	return w
}

func fsckFromWire(w *wire.FsckReport) gearsfs.FsckReport {
	r := gearsfs.FsckReport{
		Extents: w.GetExtents(), Bytes: w.GetBytes(), Segments: w.GetSegments(), Allocated: w.GetAllocated(), Unreferenced: w.GetUnreferenced(),
		Recent: w.GetRecent(), Freed: w.GetFreed(), Unswept: w.GetUnswept(), Found: w.GetFound(), Mended: w.GetMended(),
	}
	for _, f := range w.GetFaults() {
		r.Faults = append(r.Faults, gearsfs.Fault{
			What: f.What, Path: f.Path, Ino: gearsfs.Ino(f.Ino), Key: gearsfs.Key(f.Key), Pos: gearsfs.Pos(f.Pos), Bytes: f.Bytes,
			Segment: f.Segment, At: f.At, Reason: f.Reason, Mended: f.Mended,
		})
	}
	return r
}
