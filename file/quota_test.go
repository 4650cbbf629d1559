package file

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

func ptrTo[T any](v T) *T { return &v }

// limit sets a quota and counts it to the end.
func (r *rig) limit(dir gearsfs.Ino, bytes, inodes uint64) {
	r.t.Helper()
	a := r.do(&wire.SetQuota{Dir: uint64(dir), Bytes: &bytes, Inodes: &inodes})
	r.counted(a)
}

func (r *rig) unlimit(dir gearsfs.Ino) {
	r.t.Helper()
	r.counted(r.do(&wire.SetQuota{Dir: uint64(dir), Remove: true}))
}

func (r *rig) counted(a *wire.Answer) {
	r.t.Helper()
	for a.Count != 0 {
		r.check()
		a = r.do(&wire.CountQuota{})
	}
	r.check()
}

func (r *rig) quota(dir gearsfs.Ino) gearsfs.Quota {
	r.t.Helper()
	q, err := r.m.Quota(dir)
	require.NoError(r.t, err)
	return q
}

func (r *rig) used(dir gearsfs.Ino) []uint64 {
	q := r.quota(dir)
	return []uint64{q.BytesUsed, q.InodesUsed}
}

func putTo(ino gearsfs.Ino, key string, sizes ...int) *wire.Put {
	put := &wire.Put{Target: &wire.Target{Ino: uint64(ino)}, Key: key}
	for _, n := range sizes {
		put.Records = append(put.Records, &wire.NewRecord{Data: make([]byte, n)})
	}
	return put
}

func (r *rig) refused(want error, op any) {
	r.t.Helper()
	_, err := r.try(gearsfs.Root, op)
	require.ErrorIs(r.t, err, want)
	r.check()
}

func TestQuotaOfBytes(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	f := r.create(d, "f", 0o644)
	r.do(putTo(f, "k", 100))
	r.limit(d, 1000, 0)
	require.Equal(t, []uint64{100, 2}, r.used(d))
	r.do(putTo(f, "data", 400))
	require.EqualValues(t, 1, r.attr(f).Blocks, "all streams count")
	r.refused(gearsfs.ErrQuota, putTo(f, "k", 501))
	r.refused(gearsfs.ErrQuota, putTo(f, "l", 300, 300))
	r.refused(gearsfs.ErrQuota, &wire.Write{Ino: uint64(f), Pos: 400, Data: make([]byte, 501)})
	r.do(&wire.Write{Ino: uint64(f), Pos: 300, Data: make([]byte, 600)})
	require.Equal(t, []uint64{1000, 2}, r.used(d))
	r.do(&wire.Write{Ino: uint64(f), Pos: 0, Data: make([]byte, 900)}) // in place
	r.do(putTo(f, "k"))
	r.do(putTo(f, "k", 0))
	r.refused(gearsfs.ErrQuota, &wire.Update{Target: &wire.Target{Ino: uint64(f)}, Key: "k", Record: &wire.NewRecord{Data: make([]byte, 101)}})
	r.do(&wire.Update{Target: &wire.Target{Ino: uint64(f)}, Key: "k", Record: &wire.NewRecord{Data: make([]byte, 100)}})
	r.do(&wire.Move{Target: &wire.Target{Ino: uint64(f)}, Key: "k", To: "m"})
	r.refused(gearsfs.ErrQuota, &wire.CopyFile{From: &wire.Target{Ino: uint64(f)}, To: &wire.Target{Dir: uint64(d), Name: "copy"}})
	r.do(&wire.CopyFile{From: &wire.Target{Ino: uint64(f)}, To: &wire.Target{Dir: 1, Name: "copy"}})
	require.Equal(t, []uint64{1000, 2}, r.used(d))

	r.do(&wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"m"}, Max: 1})
	require.Equal(t, []uint64{900, 2}, r.used(d))
	r.do(&wire.SetAttr{Ino: uint64(f), Size: ptrTo(uint64(10))})
	require.Equal(t, []uint64{10, 2}, r.used(d))
	r.do(&wire.SetQuota{Dir: uint64(d), Bytes: ptrTo(uint64(5))})
	require.EqualValues(t, 5, r.quota(d).Bytes)
	r.refused(gearsfs.ErrQuota, putTo(f, "k", 1))
	r.do(r.unlink(d, "f", false))
	require.Equal(t, []uint64{0, 1}, r.used(d))
}

func TestQuotaOfInodes(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	r.limit(d, 0, 3)
	sub := r.mkdir(d, "sub", 0o755)
	f := r.create(sub, "f", 0o644)
	r.refused(gearsfs.ErrQuota, &wire.Make{Dir: uint64(sub), Name: "g", Mode: modeFile | 0o644})
	r.refused(gearsfs.ErrQuota, &wire.Put{Target: &wire.Target{Dir: uint64(d), Name: "q"}, Key: "k", Records: []*wire.NewRecord{{}}})
	r.refused(gearsfs.ErrQuota, &wire.CopyFile{From: &wire.Target{Ino: uint64(f)}, To: &wire.Target{Dir: uint64(d), Name: "copy"}})
	r.do(&wire.Link{Ino: uint64(f), Dir: uint64(d), Name: "again"})
	holder := gearsfs.SessionID{Minted: 1, Salt: 1}
	r.do(r.unlink(d, "again", false))
	r.do(r.unlink(sub, "f", false, holder))
	r.refused(gearsfs.ErrQuota, &wire.Make{Dir: uint64(d), Name: "g", Mode: modeFile | 0o644}) // it is still open
	r.entry(by(holder, as(gearsfs.Root, &wire.Release{Ino: uint64(f)})))
	r.create(d, "g", 0o644)
	require.Equal(t, []uint64{0, 3}, r.used(d))
}

func TestQuotasWithinQuotas(t *testing.T) {
	r := newRig(t)
	r.limit(gearsfs.RootIno, 1000, 0)
	a := r.mkdir(1, "a", 0o755)
	b := r.mkdir(a, "b", 0o755)
	r.limit(b, 600, 0)
	r.limit(a, 0, 9) // between the two
	f, g := r.create(a, "f", 0o644), r.create(b, "g", 0o644)
	r.do(putTo(f, "k", 500))
	r.refused(gearsfs.ErrQuota, putTo(g, "k", 501)) // the root's
	r.do(putTo(g, "k", 400))
	r.refused(gearsfs.ErrQuota, putTo(g, "k", 201)) // its own
	require.Equal(t, []uint64{400, 2}, r.used(b))
	require.Equal(t, []uint64{900, 4}, r.used(a))
	require.Equal(t, []uint64{900, 5}, r.used(1))

	room, err := r.m.QuotaRoom(g)
	require.NoError(t, err)
	require.Equal(t, QuotaRoom{Bytes: 1000, BytesUsed: 900, Inodes: 9, InodesUsed: 4}, room)
	r.do(&wire.SetQuota{Dir: uint64(b), Bytes: ptrTo(uint64(450))})
	room, err = r.m.QuotaRoom(g)
	require.NoError(t, err)
	require.Equal(t, QuotaRoom{Bytes: 450, BytesUsed: 400, Inodes: 9, InodesUsed: 4}, room)

	r.reopen()
	r.check()
	r.unlimit(a)
	_, err = r.m.Quota(a)
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	require.Equal(t, []uint64{900, 5}, r.used(1))
	r.unlimit(1)
	require.Equal(t, []uint64{400, 2}, r.used(b))
	room, err = r.m.QuotaRoom(f)
	require.NoError(t, err)
	require.Zero(t, room)
	r.limit(a, 0, 0)
	r.limit(1, 0, 0) // around a, which stays around b
	require.Equal(t, []uint64{900, 5}, r.used(1))
	require.EqualValues(t, a, r.m.quotas.all[b].row.Outer)
}

func TestNamesAcrossQuotas(t *testing.T) {
	r := newRig(t)
	a, b := r.mkdir(1, "a", 0o755), r.mkdir(1, "b", 0o755)
	r.limit(a, 1000, 10)
	r.limit(b, 500, 3)
	f := r.create(a, "f", 0o644)
	r.do(putTo(f, "k", 501))
	r.refused(gearsfs.ErrQuota, r.rename(a, "f", b, "f", 0))
	r.do(&wire.SetQuota{Dir: uint64(b), Bytes: ptrTo(uint64(700))})
	r.do(r.rename(a, "f", b, "f", 0))
	require.Equal(t, []uint64{501, 2}, r.used(b))
	require.Equal(t, []uint64{0, 1}, r.used(a))
	r.refused(gearsfs.ErrCross, &wire.Link{Ino: uint64(f), Dir: uint64(a), Name: "l"})
	r.do(&wire.Link{Ino: uint64(f), Dir: uint64(b), Name: "l"})
	r.refused(gearsfs.ErrCross, r.rename(b, "l", a, "l", 0))

	d := r.mkdir(a, "d", 0o755)
	r.do(r.rename(a, "d", b, "d", 0)) // nothing is in it
	require.Equal(t, []uint64{501, 3}, r.used(b))
	r.refused(gearsfs.ErrQuota, &wire.Make{Dir: uint64(d), Name: "g", Mode: modeFile})
	r.do(&wire.SetQuota{Dir: uint64(b), Inodes: ptrTo(uint64(9))})
	r.create(d, "g", 0o644)
	r.refused(gearsfs.ErrCross, r.rename(b, "d", 1, "d", 0))
	r.create(a, "x", 0o644)
	r.refused(gearsfs.ErrCross, r.rename(a, "x", b, "d", renameExchange))

	r.limit(d, 0, 0) // one with a quota of its own moves with what it has
	r.do(r.rename(b, "d", a, "d", 0))
	r.check()
	require.Equal(t, []uint64{0, 4}, r.used(a))
	require.Equal(t, []uint64{501, 2}, r.used(b))
}

func TestFileWithNamesOutside(t *testing.T) {
	r := newRig(t)
	a := r.mkdir(1, "a", 0o755)
	f := r.create(a, "f", 0o644)
	r.do(&wire.Link{Ino: uint64(f), Dir: 1, Name: "out"})
	r.limit(a, 100, 0)
	r.do(putTo(f, "k", 60))
	r.do(r.rename(1, "out", 1, "renamed", 0))
	require.Equal(t, []uint64{60, 2}, r.used(a))
	r.do(r.unlink(a, "f", false))
	require.Equal(t, []uint64{60, 2}, r.used(a), "it counts where it was")
	r.unlimit(a)
	r.refused(gearsfs.ErrNotFound, &wire.SetQuota{Dir: uint64(a), Remove: true})
	r.limit(a, 100, 0)
	require.Equal(t, []uint64{60, 2}, r.used(a))
	r.do(r.unlink(1, "a", true))
	r.check()
	r.do(putTo(f, "k", 600))
	r.do(r.unlink(1, "renamed", false))
	r.check()
	require.NotContains(t, string(r.dump()), `"q`, "the quota is forgotten")
}

func TestTransactionUnderQuota(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	f := r.create(d, "f", 0o644)
	r.do(putTo(f, "a", 600))
	r.limit(d, 1000, 3)
	put := func(name string, n int) *wire.Step {
		return &wire.Step{Op: &wire.Step_Put{Put: &wire.Put{
			Target: &wire.Target{Dir: uint64(d), Name: name}, Key: "k", Records: []*wire.NewRecord{{Data: make([]byte, n)}}}}}
	}
	take := &wire.Step{Op: &wire.Step_Take{Take: &wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"a"}, Max: 1}}}
	a, err := r.try(gearsfs.Root, &wire.Transact{Steps: []*wire.Step{put("f", 200), put("f", 201)}})
	require.ErrorIs(t, err, gearsfs.ErrQuota)
	require.EqualValues(t, 1, a.FailedStep)
	r.refused(gearsfs.ErrQuota, &wire.Transact{Steps: []*wire.Step{put("g", 1), put("h", 1)}})
	r.refused(gearsfs.ErrQuota, &wire.Transact{Steps: []*wire.Step{take, put("g", 1001)}})
	r.do(&wire.Transact{Steps: []*wire.Step{take, put("g", 500), put("g", 500)}})
	r.check()
	require.Equal(t, []uint64{1000, 3}, r.used(d))
}

func TestDropOldestUnderQuota(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	f := r.create(d, "f", 0o644)
	r.do(&wire.Configure{Target: &wire.Target{Ino: uint64(f)}, Key: "k", SetLimits: true, LimitBytes: 100,
		Settings: &wire.Settings{Full: ptrTo(uint32(gearsfs.FullDropOldest))}})
	r.limit(d, 100, 0)
	for range 5 {
		r.do(putTo(f, "k", 40))
		r.check()
	}
	require.Equal(t, []uint64{80, 2}, r.used(d))
}

func TestQuotaNeedsTheOwner(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o777)
	f := r.create(d, "f", 0o666)
	_, err := r.try(gearsfs.Caller{UID: 7, GIDs: []uint32{7}}, &wire.SetQuota{Dir: uint64(d), Bytes: ptrTo(uint64(1))})
	require.ErrorIs(t, err, gearsfs.ErrPermission)
	r.refused(gearsfs.ErrNotDir, &wire.SetQuota{Dir: uint64(f), Bytes: ptrTo(uint64(1))})
	r.refused(gearsfs.ErrStale, &wire.SetQuota{Dir: 999})
	r.refused(gearsfs.ErrNotFound, &wire.SetQuota{Dir: uint64(d), Remove: true})
}

// TestQuotaIsCountedInSteps changes the tree while its quota is being counted.
func TestQuotaIsCountedInSteps(t *testing.T) {
	r := newRig(t)
	r.m.countMax = 1
	top := r.mkdir(1, "top", 0o755)
	var dirs []gearsfs.Ino
	for i := range 5 {
		dirs = append(dirs, r.mkdir(top, fmt.Sprint("d", i), 0o755))
		for j := range 3 {
			r.do(putTo(r.create(dirs[i], fmt.Sprint("f", j), 0o644), "k", 10))
		}
	}
	outside := r.mkdir(1, "outside", 0o755)
	a := r.do(&wire.SetQuota{Dir: uint64(top), Bytes: ptrTo(uint64(1 << 20))})
	require.NotZero(t, a.Count)
	require.True(t, r.quota(top).Counting)
	r.refused(gearsfs.ErrBusy, &wire.SetQuota{Dir: uint64(outside), Bytes: ptrTo(uint64(1))})
	r.refused(gearsfs.ErrBusy, &wire.SetQuota{Dir: uint64(top), Remove: true})
	r.do(&wire.CountQuota{})
	r.do(r.rename(dirs[4], "f0", dirs[0], "moved", 0))
	r.do(r.rename(top, "d3", dirs[0], "d3", 0))
	r.do(r.rename(dirs[4], "f1", outside, "f1", 0))
	r.create(dirs[4], "new", 0o644)
	r.counted(r.do(&wire.CountQuota{}))
	require.False(t, r.quota(top).Counting)
	require.Equal(t, []uint64{140, 6 + 14 + 1}, r.used(top))
	r.m.countMax = 2
	r.unlimit(top)
	require.NotContains(t, string(r.dump()), `"q`)
}

// TestQuotaLosesTheMoved moves a directory away that was found and not visited.
func TestQuotaLosesTheMoved(t *testing.T) {
	r := newRig(t)
	r.m.countMax = 1
	top := r.mkdir(1, "top", 0o755)
	for i := range 4 {
		r.mkdir(top, fmt.Sprint("d", i), 0o755)
	}
	last := r.mkdir(top, "last", 0o755)
	r.do(&wire.SetQuota{Dir: uint64(top)})
	for r.m.quotas.all[top].row.Inodes < 6 {
		r.do(&wire.CountQuota{})
	}
	require.True(t, r.m.Counting())
	r.do(r.rename(top, "last", 1, "last", 0))
	r.mkdir(last, "in", 0o755)
	r.counted(r.do(&wire.CountQuota{}))
	require.Equal(t, []uint64{0, 5}, r.used(top))
}

// TestOldFilesAreCounted reads a file whose row does not say its bytes.
func TestOldFilesAreCounted(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	f := r.create(d, "f", 0o644)
	r.do(putTo(f, "k", 700))
	r.do(putTo(f, "data", 300))
	old := wire.InodeRow{Mode: modeFile | 0o644, Nlink: 1, Streams: 2}
	r.m.set(persist.InodeKey(f), &old)
	require.NoError(t, r.m.store.Commit())
	r.reopen()
	require.EqualValues(t, 2, r.attr(f).Blocks)
	r.limit(d, 2000, 0)
	require.Equal(t, []uint64{1000, 2}, r.used(d))
	r.reopen()
	r.do(putTo(f, "k", 24))
	require.Equal(t, []uint64{1024, 2}, r.used(d))
	r.check()
}

// TestQuotaModel is TestModel with quotas: their use is what is found below them
// after each step, nothing but growth is refused because of one, and no
// operation lets one be passed.
func TestQuotaModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	p := &player{rig: newRig(t), twin: newRig(t), rng: rand.New(rand.NewPCG(seed, 1))}
	p.model = newModel(p.now)
	p.blocks = newFakeBlocks(t, p.rng)
	p.sessions = []gearsfs.SessionID{{Minted: rigStart}, {Minted: rigStart, Salt: 1}}
	p.more = []func() op{p.setQuota, p.countQuota, p.countQuota}
	refusals := map[string]int{}
	p.refused = func(err error, o any) bool {
		for _, want := range []error{gearsfs.ErrQuota, gearsfs.ErrCross, gearsfs.ErrBusy, gearsfs.ErrNotFound} {
			if errors.Is(err, want) && p.mayRefuse(want, o) {
				refusals[fmt.Sprintf("%T %v", o, gearsfs.CodeOf(want))]++
				return true
			}
		}
		return false
	}
	defer func() {
		if t.Failed() {
			for _, l := range p.log[max(0, len(p.log)-30):] {
				t.Log(l)
			}
		}
	}()
	for i := range *modelSteps {
		p.twin.m.nodes.max, p.twin.m.dentries.max, p.twin.m.streams.max = 2, 2, 1
		p.m.countMax, p.twin.m.countMax = 3, 3
		before := p.allQuotas()
		p.step()
		p.check()
		p.notPassed(before)
		switch {
		case p.rng.IntN(100) == 0:
			p.reopen()
		case p.rng.IntN(60) == 0:
			p.twin.reopen()
		}
		if i%100 == 99 {
			p.compareAll()
			p.compareTwin()
		}
	}
	t.Log(refusals)
}

func (p *player) setQuota() op {
	dir := p.dir()
	if dir == gearsfs.RootIno && p.rng.IntN(4) > 0 {
		return p.make()
	}
	o := &wire.SetQuota{Dir: uint64(dir)}
	if o.Remove = p.rng.IntN(3) == 0; !o.Remove {
		bytes, inodes := p.rng.Uint64N(4)*40*k, p.rng.Uint64N(4)*4
		o.Bytes, o.Inodes = &bytes, &inodes
	}
	return op{op: o, done: func(*wire.Answer) {}}
}

func (p *player) countQuota() op { return op{op: &wire.CountQuota{}, done: func(*wire.Answer) {}} }

// allQuotas are those that are set on directories.
func (p *player) allQuotas() map[gearsfs.Ino]gearsfs.Quota {
	all := map[gearsfs.Ino]gearsfs.Quota{}
	for dir, n := range p.model.inodes {
		if isDir(n.mode) && n.nlink > 0 {
			if q, err := p.m.Quota(dir); err == nil {
				all[dir] = q
			}
		}
	}
	return all
}

// mayRefuse says whether an error is one that quotas account for.
func (p *player) mayRefuse(err error, o any) bool {
	quotas := p.allQuotas()
	switch o := o.(type) {
	case *wire.SetQuota:
		_, set := quotas[gearsfs.Ino(o.Dir)]
		return err == gearsfs.ErrBusy && p.m.Counting() || err == gearsfs.ErrNotFound && o.Remove && !set
	case *wire.Rename:
		if err == gearsfs.ErrCross || err == gearsfs.ErrBusy && p.m.Counting() {
			return len(quotas) > 0 || p.m.Counting()
		}
	case *wire.Link:
		if err == gearsfs.ErrCross {
			return true
		}
	case *wire.Make, *wire.Write, *wire.Save, *wire.Put, *wire.CopyRange, *wire.CopyFile:
	default:
		return false
	}
	if err != gearsfs.ErrQuota {
		return false
	}
	for _, q := range quotas { // no operation adds more than this
		if q.Bytes != 0 && q.BytesUsed+90*k > q.Bytes || q.Inodes != 0 && q.InodesUsed+1 > q.Inodes {
			return true
		}
		if _, moves := o.(*wire.Rename); moves && (q.Bytes != 0 || q.Inodes != 0) {
			return true
		}
	}
	return false
}

// notPassed checks that no quota was passed since before, but by what is counted
// and was there.
func (p *player) notPassed(before map[gearsfs.Ino]gearsfs.Quota) {
	if p.m.Counting() {
		return
	}
	for dir, q := range p.allQuotas() {
		was, known := before[dir]
		if !known || was.Counting || was.Bytes != q.Bytes || was.Inodes != q.Inodes {
			continue
		}
		require.False(p.t, q.Bytes != 0 && q.BytesUsed > max(was.BytesUsed, q.Bytes), "%+v then %+v", was, q)
		require.False(p.t, q.Inodes != 0 && q.InodesUsed > max(was.InodesUsed, q.Inodes), "%+v then %+v", was, q)
	}
}
