package payload

import (
	"context"
	"errors"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/file"
)

// faultsMax is how many faults are listed.
const faultsMax = 1000

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
	k := r.upkeep.keeper
	live := func(yield func(gearsfs.Extent) error) error {
		return k.cfg.Machine.LiveRows(func(row file.Row, off uint64, e gearsfs.Extent) error {
			r.row, r.off = row, off
			return yield(e)
		})
	}
	found, err := k.store.Check(ctx, live, block.CheckOptions{
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
		err = errors.Join(err, k.store.Sync())
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
	live, err := r.upkeep.keeper.cfg.Machine.Refers(r.row, e)
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
	k := r.upkeep.keeper
	if k.cfg.Members.Alone() {
		return false, nil
	}
	if r.tried.Origin != e.Origin || r.tried.Segment != e.Segment || r.tried.At != e.At {
		r.failed = k.fetch(ctx, e)
		r.tried, r.mended = e, r.failed == nil
	}
	return r.mended, r.failed
}

func (r *checkRun) add(f gearsfs.Fault) {
	r.report.Found++
	if f.Mended {
		r.report.Mended++
	}
	if len(r.report.Faults) < faultsMax {
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
	paths, err := r.upkeep.keeper.cfg.Machine.Paths(inos)
	for i := range r.report.Faults {
		f := &r.report.Faults[i]
		f.Path = paths[f.Ino]
	}
	return err
}

// Fsck checks the tables of this node, and all bytes of large payloads, of which
// it reads at most so many in a second; 0 is no bound. With repair it mends what
// other nodes have and frees what nothing refers to. progress, where it is not nil,
// is told on the same goroutine how far it is. gearsfs.ErrBusy while another check
// is under way.
func (k *Keeper) Fsck(ctx context.Context, repair bool, rate int64, progress func(gearsfs.FsckReport)) (gearsfs.FsckReport, error) {
	u := &k.upkeep
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
	for _, err := range k.cfg.Machine.Check() {
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
