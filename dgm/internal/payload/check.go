package dgm

import (
	"context"
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	fsckBytesPerSecond = 64 << 20 // read for who asks a node that serves others
	fsckFaultsMax      = 1000     // are listed
)

// checkRun is a check of all bytes of large payloads that rows of this node refer
// to. A fault is mended, where it is to be, when it is found.
type checkRun struct {
	upkeep   *upkeep
	mend     bool
	rate     int64
	progress func(gearsfs.FsckReport)
	report   gearsfs.FsckReport

	row    file.Row       // that refers to what is checked now
	off    uint64         // where in the row that begins
	tried  gearsfs.Extent // the last that was to be mended
	mended bool           // and was
	failed error          // or why not
}

func (u *upkeep) newRun(mend bool, rate int64, progress func(gearsfs.FsckReport)) *checkRun {
	return &checkRun{upkeep: u, mend: mend, rate: rate, progress: progress}
}

// check reads and compares, and says which files the faults are in. Rows come and
// go meanwhile: what is wrong with a row that does not refer to it any more is none.
func (r *checkRun) check(ctx context.Context) error {
	b := r.upkeep.blocks
	live := func(yield func(gearsfs.Extent) error) error {
		return b.vol.machine.LiveRows(func(row file.Row, off uint64, e gearsfs.Extent) error {
			r.row, r.off = row, off
			return yield(e)
		})
	}
	found, err := b.store.Check(ctx, live, block.CheckOptions{
		Rate: r.rate, Age: r.upkeep.settled, FaultsMax: 1, StillLive: r.stillLive,
		Found: func(e gearsfs.Extent, absent bool, f block.Fault) { r.found(ctx, e, absent, f) },
		Progress: func(p block.Progress) {
			r.report.Extents, r.report.Bytes, r.report.Segments = p.Extents, p.Bytes, uint64(p.Segments)
			r.tell()
		},
	})
	r.report.Extents, r.report.Bytes, r.report.Segments = found.Extents, found.Bytes, uint64(found.Segments)
	r.report.Allocated, r.report.Unreferenced, r.report.Recent = uint64(found.Allocated), uint64(found.Unreferenced), uint64(found.Recent)
	if r.report.Mended > 0 {
		err = errors.Join(err, b.store.Sync())
	}
	if err == nil {
		err = r.name()
	}
	return err
}

func (r *checkRun) tell() {
	if r.progress != nil {
		r.progress(r.report)
	}
}

func (r *checkRun) stillLive(e gearsfs.Extent) bool {
	live, err := r.upkeep.blocks.vol.machine.Refers(r.row, e)
	return live || err != nil
}

// found takes a fault in an extent of the row.
func (r *checkRun) found(ctx context.Context, e gearsfs.Extent, absent bool, f block.Fault) {
	from := max(f.At, e.At+e.Offset)
	end := min(f.At+f.Bytes, e.At+e.Offset+e.Length)
	fault := gearsfs.Fault{
		What: gearsfs.FaultDamaged, Ino: r.row.Ino, Key: r.row.Key,
		Pos: r.row.Place.Pos + gearsfs.Pos(r.off+from-e.At-e.Offset), Bytes: end - min(from, end),
		Segment: f.File, At: f.At, Reason: f.Reason,
	}
	if absent {
		fault.What = gearsfs.FaultMissing
	}
	if r.mend {
		var err error
		if fault.Mended, err = r.mendOnce(ctx, e); err != nil {
			fault.Reason += "; " + err.Error()
		}
	}
	r.add(fault)
}

// mendOnce fetches an extent, once for all its faults.
func (r *checkRun) mendOnce(ctx context.Context, e gearsfs.Extent) (bool, error) {
	b := r.upkeep.blocks
	if b.vol.alone() {
		return false, nil
	}
	if r.tried.Origin != e.Origin || r.tried.Segment != e.Segment || r.tried.At != e.At {
		r.failed = b.fetch(ctx, e)
		r.tried, r.mended = e, r.failed == nil
	}
	return r.mended, r.failed
}

func (r *checkRun) add(f gearsfs.Fault) {
	r.report.Found++
	if f.Mended {
		r.report.Mended++
	}
	if len(r.report.Faults) < fsckFaultsMax {
		r.report.Faults = append(r.report.Faults, f)
	}
}

// name finds the paths of the files that faults are in.
func (r *checkRun) name() error {
	inos := make(map[gearsfs.Ino]bool)
	for _, f := range r.report.Faults {
		if f.Ino != 0 {
			inos[f.Ino] = true
		}
	}
	if len(inos) == 0 {
		return nil
	}
	paths, err := r.upkeep.blocks.vol.machine.Paths(inos)
	for i := range r.report.Faults {
		f := &r.report.Faults[i]
		f.Path = paths[f.Ino]
	}
	return err
}

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
	report, err := v.blocks.upkeep.fsck(ctx, repair, rate, progress)
	if err != nil && v.busy.Err() != nil {
		err = gearsfs.ErrClosed
	}
	return report, err
}

func (u *upkeep) fsck(ctx context.Context, repair bool, rate int64, progress func(gearsfs.FsckReport)) (gearsfs.FsckReport, error) {
	u.mu.Lock()
	if u.running {
		u.mu.Unlock()
		return gearsfs.FsckReport{}, gearsfs.ErrBusy.Because("a check of this node's data is under way already")
	}
	u.running, u.sofar = true, gearsfs.FsckReport{}
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		u.running = false
		u.mu.Unlock()
	}()
	run := u.newRun(repair, rate, func(r gearsfs.FsckReport) {
		r.Faults = nil
		u.mu.Lock()
		u.sofar = r
		u.mu.Unlock()
		if progress != nil {
			progress(r)
		}
	})
	for _, err := range u.blocks.vol.machine.Check() {
		run.add(gearsfs.Fault{What: gearsfs.FaultTables, Reason: err.Error()})
	}
	if err := run.check(ctx); err != nil {
		return run.report, err
	}
	if repair {
		run.report.Freed, run.report.Unswept = u.sweepNow(ctx)
		run.report.Unreferenced -= min(run.report.Unreferenced, run.report.Freed)
	}
	return run.report, ctx.Err()
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
