package persist

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

// stateRows is how many rows setState writes.
const stateRows = 40

// setState makes the state that of entry n: each row says so, some of them in
// files of values.
func setState(d *Data, n byte) error {
	for i := range stateRows {
		d.State.Set(InodeKey(gearsfs.Ino(i)), bytes.Repeat([]byte{n}, 1+i%2*3000))
	}
	d.State.Set(VolumeKey(), []byte{n})
	return d.State.Commit()
}

// stateOfEntry says which entry's state r shows, and that it is whole.
func stateOfEntry(r reader) (n byte, err error) {
	value, ok, err := r.Get(VolumeKey(), nil)
	if err != nil || !ok {
		return 0, err
	}
	n = value[0]
	for i := range stateRows {
		value, ok, err = r.Get(InodeKey(gearsfs.Ino(i)), value[:0])
		if err != nil {
			return 0, err
		}
		if !ok || !bytes.Equal(value, bytes.Repeat([]byte{n}, 1+i%2*3000)) {
			return 0, fmt.Errorf("row %d is not that of entry %d", i, n)
		}
	}
	return n, nil
}

func requireState(t *testing.T, n byte, r reader) {
	t.Helper()
	got, err := stateOfEntry(r)
	require.NoError(t, err)
	require.Equal(t, n, got)
}

// openAt opens a directory whose log has the entries up to n, and whose state
// is that of n, flushed.
func openAt(fsys FS, n byte) (*Data, error) {
	d, err := Open("data", smallData(fsys))
	if err != nil {
		return nil, err
	}
	for i := byte(1); i <= n && err == nil; i++ {
		err = d.Log.Append([]LogEntry{{Index: uint64(i), Term: 1, Data: make([]byte, 1000)}}, []byte("old"))
	}
	if err == nil {
		err = errors.Join(d.Log.Sync(), setState(d, n), <-d.State.Flush())
	}
	return d, err
}

func newDataAt(t *testing.T, fsys FS, n byte) *Data {
	t.Helper()
	d, err := openAt(fsys, n)
	require.NoError(t, err)
	return d
}

func newSnapshot(t *testing.T, n byte) *Snapshot {
	t.Helper()
	d := newDataAt(t, vfs.NewMem(), n)
	s, err := d.MakeSnapshot()
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, d.Close())
	})
	return s
}

// fetch copies what is missing, in pieces, up to limit bytes.
func fetch(in *Incoming, s *Snapshot, limit uint64) error {
	const piece = 700
	for _, f := range s.Files {
		for have := in.Have(f.Name); have < f.Bytes; have = in.Have(f.Name) {
			if limit < piece {
				return nil
			}
			limit -= piece
			b, err := s.ReadAt(f.Name, have, piece)
			if err == nil {
				err = in.Write(f.Name, have, b)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

const all = ^uint64(0)

// receive fetches a snapshot and verifies it.
func receive(d *Data, s *Snapshot) (*Incoming, error) {
	in, err := d.Receive(s.ID, s.Files)
	if err == nil {
		err = fetch(in, s, all)
	}
	if err == nil {
		err = in.Verify()
	}
	return in, err
}

func newIncoming(t *testing.T, d *Data, s *Snapshot) *Incoming {
	t.Helper()
	in, err := receive(d, s)
	require.NoError(t, err)
	return in
}

func TestSnapshotTravels(t *testing.T) {
	for name, fsys := range map[string]FS{"os": vfs.Default, "memory": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			opts := smallData(fsys)
			donor := newDataAt(t, vfs.NewMem(), 30)
			s, err := donor.MakeSnapshot()
			require.NoError(t, err)
			require.NoError(t, setState(donor, 31))
			rows, err := s.Reader()
			require.NoError(t, err)
			requireState(t, 30, rows)
			require.NoError(t, rows.Close())

			dir := fsys.PathJoin(t.TempDir(), "data")
			d, err := Open(dir, opts)
			require.NoError(t, err)
			require.NoError(t, d.SetMember(ID{1}, 2))
			in, err := d.Receive(s.ID, s.Files)
			require.NoError(t, err)
			require.ErrorIs(t, in.Verify(), gearsfs.ErrDamaged)
			_, err = in.Reader()
			require.ErrorIs(t, err, gearsfs.ErrInvalid)
			require.NoError(t, fetch(in, s, all))
			require.ErrorIs(t, d.Install(in, 30, 3, nil), gearsfs.ErrInvalid, "it is not verified")
			require.NoError(t, in.Verify())
			rows, err = in.Reader()
			require.NoError(t, err)
			requireState(t, 30, rows)
			require.NoError(t, rows.Close())

			d.State.Set([]byte("open"), nil)
			require.ErrorIs(t, d.Install(in, 30, 3, nil), gearsfs.ErrInvalid, "a batch is open")
			require.NoError(t, d.State.Commit())
			state, log := d.State, d.Log
			require.NoError(t, d.Install(in, 30, 3, []byte("new")))
			require.Same(t, state, d.State)
			require.Same(t, log, d.Log)
			for range 2 {
				requireState(t, 30, d.State)
				require.EqualValues(t, 31, d.Log.First())
				require.EqualValues(t, 30, d.Log.Last())
				term, err := d.Log.Term(30)
				require.NoError(t, err)
				require.EqualValues(t, 3, term)
				require.Equal(t, "new", string(d.Log.HardState()))
				require.NoError(t, d.Close())
				names, err := fsys.List(dir)
				require.NoError(t, err)
				require.NotContains(t, names, "state", "the tables before are removed")
				d, err = Open(dir, opts)
				require.NoError(t, err)
			}
			require.NoError(t, d.Log.Append([]LogEntry{{Index: 31, Term: 4}}, nil))
			require.NoError(t, setState(d, 31))
			require.NoError(t, d.Close())
			d, err = Open(dir, opts)
			require.NoError(t, err)
			requireState(t, 31, d.State)
			require.EqualValues(t, 31, d.Log.Last())
			require.NoError(t, d.Close())

			require.NoError(t, s.Close())
			require.NoError(t, s.Close())
			_, err = s.ReadAt(s.Files[0].Name, 0, 1)
			require.ErrorIs(t, err, gearsfs.ErrClosed)
			require.NoError(t, donor.Close())
		})
	}
}

// TestInstallAgain installs several snapshots one after the other.
func TestInstallAgain(t *testing.T) {
	disk := vfs.NewMem()
	d := newDataAt(t, disk, 5)
	for n := byte(10); n <= 40; n += 10 {
		require.NoError(t, d.Install(newIncoming(t, d, newSnapshot(t, n)), uint64(n), uint64(n), nil))
		requireState(t, n, d.State)
		require.Equal(t, "old", string(d.Log.HardState()))
		require.EqualValues(t, n, d.Log.Last())
		if n == 20 {
			require.NoError(t, d.Close())
			var err error
			d, err = Open("data", smallData(disk))
			require.NoError(t, err)
			requireState(t, n, d.State)
		}
	}
	require.ErrorIs(t, d.Install(newIncoming(t, d, newSnapshot(t, 39)), 39, 39, nil), gearsfs.ErrInvalid, "it is older than the log")
	requireState(t, 40, d.State)
	require.NoError(t, d.Close())
	for path := range tree(t, disk, "data") {
		require.NotContains(t, path, "state-3", "only the last is left")
	}
}

func TestSnapshotReadAt(t *testing.T) {
	s := newSnapshot(t, 9)
	require.NotZero(t, s.Bytes)
	total := uint64(0)
	for _, f := range s.Files {
		total += f.Bytes
		all, err := s.ReadAt(f.Name, 0, 1<<30)
		require.NoError(t, err)
		require.Len(t, all, int(f.Bytes))
		if f.Bytes > 10 {
			b, err := s.ReadAt(f.Name, 3, 5)
			require.NoError(t, err)
			require.Equal(t, all[3:8], b)
		}
		b, err := s.ReadAt(f.Name, f.Bytes, 5)
		require.NoError(t, err)
		require.Empty(t, b)
		_, err = s.ReadAt(f.Name, f.Bytes+1, 5)
		require.ErrorIs(t, err, gearsfs.ErrRange)
		b, err = s.ReadAt(f.Name, 0, -1)
		require.NoError(t, err)
		require.Empty(t, b)
	}
	require.Equal(t, total, s.Bytes)
	for _, name := range []string{"", "nothing", "../" + s.ID + "/" + s.Files[0].Name} {
		_, err := s.ReadAt(name, 0, 1)
		require.ErrorIs(t, err, gearsfs.ErrNotFound)
	}
}

func TestReceiveRefuses(t *testing.T) {
	s := newSnapshot(t, 9)
	disk := vfs.NewMem()
	d := newDataAt(t, disk, 1)
	for _, id := range []string{"", ".", "..", "../x", s.ID + "0", "ABCDEF" + s.ID[6:], "/" + s.ID} {
		_, err := d.Receive(id, s.Files)
		require.ErrorIs(t, err, gearsfs.ErrInvalid, "%q", id)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../identity", "/etc/passwd", "a\x00b", ".hidden", string(make([]byte, 300))} {
		_, err := d.Receive(s.ID, []SnapshotFile{{Name: name, Bytes: 1}})
		require.ErrorIs(t, err, gearsfs.ErrInvalid, "%q", name)
	}
	_, err := d.Receive(s.ID, []SnapshotFile{{Name: "a"}, {Name: "a"}})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = d.Receive(s.ID, []SnapshotFile{{Name: "a", Bytes: all}, {Name: "b", Bytes: 2}})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	require.False(t, isThere(disk, "data/incoming"))

	in, err := d.Receive(s.ID, []SnapshotFile{{Name: "a", Bytes: 10}, {Name: "b", Bytes: 0}})
	require.NoError(t, err)
	require.ErrorIs(t, in.Write("c", 0, nil), gearsfs.ErrInvalid)
	require.ErrorIs(t, in.Write("a", 1, []byte("x")), gearsfs.ErrInvalid)
	require.ErrorIs(t, in.Write("a", 0, make([]byte, 11)), gearsfs.ErrInvalid)
	require.NoError(t, in.Write("a", 0, []byte("01234")))
	require.NoError(t, in.Write("a", 0, []byte("012")), "that is there already")
	require.NoError(t, in.Write("a", 3, []byte("3456")), "and so is a part of this")
	require.EqualValues(t, 7, in.Have("a"))
	require.ErrorIs(t, in.Write("a", all, []byte("x")), gearsfs.ErrInvalid)
	require.NoError(t, in.Write("a", 7, []byte("789")))
	require.Equal(t, "0123456789", string(readAll(t, disk, "data/incoming/"+s.ID+"/a")))
	require.NoError(t, in.Discard())
	require.Zero(t, in.Have("a"))
	require.NoError(t, d.Close())
}

// smallDisk is a file system that says how much room it has.
type smallDisk struct {
	FS
	free uint64
}

func (d smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free, TotalBytes: 2 * d.free, UsedBytes: d.free}, nil
}

func TestReceiveAsksForRoom(t *testing.T) {
	s := newSnapshot(t, 9)
	d := newDataAt(t, smallDisk{vfs.NewMem(), s.Bytes - 1}, 1)
	_, err := d.Receive(s.ID, s.Files)
	require.ErrorIs(t, err, gearsfs.ErrNoSpace)
	d.fs = smallDisk{d.fs.(smallDisk).FS, s.Bytes}
	in, err := d.Receive(s.ID, s.Files)
	require.NoError(t, err)
	require.NoError(t, fetch(in, s, 5000))
	d.fs = smallDisk{d.fs.(smallDisk).FS, s.Bytes - 4000}
	in, err = d.Receive(s.ID, s.Files)
	require.NoError(t, err, "it needs room for the rest only")
	require.NoError(t, fetch(in, s, all))
	require.NoError(t, in.Verify())
	require.NoError(t, d.Close())
}

// TestReceiveGoesOn cuts transfers off at random places, by the end of the
// process or of the power, and fetches only what is missing.
func TestReceiveGoesOn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSnapshot(t, 9)
	disk := vfs.NewCrashableMem()
	d := newDataAt(t, disk, 1)
	other, err := d.Receive(ID{1}.String(), s.Files)
	require.NoError(t, err)
	require.NoError(t, fetch(other, s, 2000))
	done := uint64(0)
	for done < s.Bytes {
		in, err := d.Receive(s.ID, s.Files)
		require.NoError(t, err)
		names, err := disk.List("data/incoming")
		require.NoError(t, err)
		require.Equal(t, []string{s.ID}, names, "the other is gone")
		done = 0
		for _, f := range s.Files {
			done += in.Have(f.Name)
		}
		require.NoError(t, fetch(in, s, rng.Uint64N(s.Bytes/4)))
		if rng.IntN(3) == 0 {
			require.NoError(t, d.Close())
		} else {
			disk = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		}
		d, err = Open("data", smallData(disk))
		require.NoError(t, err)
	}
	in, err := d.Receive(s.ID, s.Files)
	require.NoError(t, err)
	for err = in.Verify(); err != nil; err = in.Verify() { // some pieces may not have survived
		require.ErrorIs(t, err, gearsfs.ErrDamaged)
		require.NoError(t, fetch(in, s, all))
	}
	require.NoError(t, d.Install(in, 9, 1, nil))
	requireState(t, 9, d.State)
	require.NoError(t, d.Close())
}

// TestVerifyFindsDamage turns a bit of each file: it is named, and fetched
// again.
func TestVerifyFindsDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	s := newSnapshot(t, 9)
	disk := vfs.NewMem()
	d := newDataAt(t, disk, 1)
	for _, f := range s.Files {
		in := newIncoming(t, d, s)
		path := "data/incoming/" + s.ID + "/" + f.Name
		bad := readAll(t, disk, path)
		if len(bad) == 0 {
			bad = []byte("x")
		} else {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
		writeAll(t, disk, path, bad)
		err := in.Verify()
		require.ErrorIs(t, err, gearsfs.ErrDamaged)
		require.ErrorContains(t, err, f.Name)
		require.Zero(t, in.Have(f.Name))
		require.ErrorIs(t, d.Install(in, 9, 1, nil), gearsfs.ErrInvalid)
		if f.Bytes > 0 {
			require.ErrorIs(t, in.Verify(), gearsfs.ErrDamaged, "it is missing now")
		}
		require.NoError(t, fetch(in, s, all))
		require.NoError(t, in.Verify())
	}
	// Files that are as they were sent and yet no state.
	in, err := d.Receive(ID{5}.String(), []SnapshotFile{{Name: "a", Bytes: 0}})
	require.NoError(t, err)
	require.ErrorIs(t, in.Verify(), gearsfs.ErrDamaged)
	require.NoError(t, d.Close())
}

// TestOpenRemovesSnapshots: what others fetched is not known any more, what
// was fetched here is.
func TestOpenRemovesSnapshots(t *testing.T) {
	disk := vfs.NewMem()
	d := newDataAt(t, disk, 3)
	s, err := d.MakeSnapshot()
	require.NoError(t, err)
	in, err := d.Receive(ID{5}.String(), []SnapshotFile{{Name: "a", Bytes: 3}})
	require.NoError(t, err)
	require.NoError(t, in.Write("a", 0, []byte("12")))
	require.NoError(t, d.Close())
	require.NoError(t, disk.MkdirAll("data/state-7", 0o700))
	d, err = Open("data", smallData(disk))
	require.NoError(t, err)
	_, err = s.Reader()
	require.Error(t, err)
	files := tree(t, disk, "data")
	require.Contains(t, files, "data/incoming/"+ID{5}.String()+"/a")
	require.NotContains(t, files, "data/snapshots")
	require.NotContains(t, files, "data/state-7")
	requireState(t, 3, d.State)
	require.NoError(t, d.Close())
}

// TestSnapshotWhileCommitting: it is as after one commit, and not an older one
// than when it was asked for.
func TestSnapshotWhileCommitting(t *testing.T) {
	d := newDataAt(t, vfs.NewMem(), 1)
	var last atomic.Int32
	last.Store(1)
	var wait sync.WaitGroup
	stop := make(chan struct{})
	wait.Go(func() {
		for n := byte(2); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if n == 0 {
				return
			}
			if err := setState(d, n); err != nil {
				t.Error(err)
				return
			}
			last.Store(int32(n))
		}
	})
	for range 15 {
		before := last.Load()
		s, err := d.MakeSnapshot()
		require.NoError(t, err)
		rows, err := s.Reader()
		require.NoError(t, err)
		n, err := stateOfEntry(rows)
		require.NoError(t, err)
		require.GreaterOrEqual(t, int32(n), before)
		require.NoError(t, rows.Close())
		require.NoError(t, s.Close())
	}
	close(stop)
	wait.Wait()
	require.NoError(t, d.Close())
}

func TestMakeSnapshotFails(t *testing.T) {
	disk := vfs.NewMem()
	full := &fullDisk{}
	d := newDataAt(t, errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !strings.Contains(op.Path, snapshotsName) {
			return nil
		}
		return full.MaybeError(op)
	})), 3)
	full.set(true)
	_, err := d.MakeSnapshot()
	require.ErrorIs(t, err, gearsfs.ErrNoSpace)
	full.set(false)
	s, err := d.MakeSnapshot()
	require.NoError(t, err)
	names, err := disk.List("data/snapshots")
	require.NoError(t, err)
	require.Equal(t, []string{s.ID}, names)
	require.NoError(t, d.Close())
}
