package file

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

var replicaEntries = flag.Int("entries", 800, "how many random entries the replicas apply")

// logged is an entry of the log that all replicas apply.
type logged struct {
	entry *wire.Entry
	conf  string // else it is raft's
	cause *wire.MemberChange
	want  []*wire.Answer // of the first replica
}

// replica is a Machine that applies the log at its own pace.
type replica struct {
	*rig
	name string
	// befall is what happens to it before it applies an entry.
	befall func(r *replica)
}

func newReplica(t *testing.T, name string, befall func(r *replica)) *replica {
	r := &replica{rig: &rig{t: t, fs: vfs.NewCrashableMem()}, name: name, befall: befall}
	r.open(true)
	t.Cleanup(func() { require.NoError(t, r.data.Close()) })
	return r
}

// catchUp applies the log up to an index.
func (r *replica) catchUp(log []logged, index uint64) {
	for {
		r.befall(r)
		applied, _ := r.m.Applied()
		if applied >= index {
			return
		}
		r.apply(applied+1, &log[applied])
	}
}

func (r *replica) apply(index uint64, l *logged) {
	if l.entry == nil {
		context, err := l.cause.MarshalVT()
		require.NoError(r.t, err)
		require.NoError(r.t, r.m.ApplyConf(index, 1, []byte(l.conf), context))
		return
	}
	encoded, err := l.entry.MarshalVT()
	require.NoError(r.t, err)
	entry := new(wire.Entry)
	require.NoError(r.t, entry.UnmarshalVTUnsafe(encoded)) // as it comes from the log
	answers, err := r.m.Apply(index, 1, entry)
	require.NoError(r.t, err)
	require.Len(r.t, answers, len(entry.Commands))
	if l.want == nil {
		for _, a := range answers {
			l.want = append(l.want, proto.CloneOf(a))
		}
	}
	for i, a := range answers {
		if !proto.Equal(l.want[i], a) {
			require.Failf(r.t, "answers differ", "%s, entry %d, command %d: %.300v\n%.500v\n%.500v",
				r.name, index, i, entry.Commands[i], l.want[i], a)
		}
	}
}

func (r *replica) hash() string {
	r.t.Helper()
	sum, err := HashState(r.t.Context(), r.data.State, nil)
	require.NoError(r.t, err)
	return fmt.Sprintf("%x", sum)
}

// cleaned counts the streams of which ranges of rows were removed in bulk.
func (r *replica) cleaned() (n int) {
	lo, hi := persist.TableRange(persist.TableStream)
	require.NoError(r.t, scan(r.data.State, lo, hi, func(_, value []byte) error {
		var row wire.StreamRow
		err := row.UnmarshalVT(value)
		if row.CleanedPos+row.CleanedSeq > 0 {
			n++
		}
		return err
	}))
	return n
}

// crash cuts the power: what was applied since some flush is to be applied
// again.
func (r *replica) crash(rng *rand.Rand) {
	left := r.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
	require.NoError(r.t, r.data.Close())
	r.fs = left
	r.open(false)
}

// install replaces the state by a snapshot of another replica's, which is
// somewhere else.
func (r *replica) install(donor *replica) {
	at, term := donor.m.Applied()
	if mine, _ := r.m.Applied(); at <= mine {
		return
	}
	s, err := donor.data.MakeSnapshot()
	require.NoError(r.t, err)
	in, err := r.data.Receive(s.ID, s.Files)
	require.NoError(r.t, err)
	for _, f := range s.Files {
		b, err := s.ReadAt(f.Name, 0, int(f.Bytes))
		require.NoError(r.t, err)
		require.NoError(r.t, in.Write(f.Name, 0, b))
	}
	require.NoError(r.t, in.Verify())
	rows, err := in.Reader()
	require.NoError(r.t, err)
	info, err := ReadVolume(rows)
	require.NoError(r.t, err)
	require.Equal(r.t, at, info.Index)
	require.NoError(r.t, rows.Close())
	require.NoError(r.t, r.m.Replace(func() error { return r.data.Install(in, at, term, nil) }))
	require.NoError(r.t, s.Close())
	got, _ := r.m.Applied()
	require.Equal(r.t, at, got)
	require.Equal(r.t, info.Conf, r.m.ConfState())
}

// TestReplicas applies random entries on replicas of which one lives a quiet
// life, one forgets what it has in memory all the time and is reopened, one
// loses power, and one falls behind and gets the state of another: their
// answers, and their tables byte for byte, are the same.
func TestReplicas(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2)) // of what befalls them
	quiet := newReplica(t, "the quiet one", func(*replica) {})
	small := newReplica(t, "the one with no memory", func(r *replica) {
		if rng.IntN(100) == 0 {
			r.reopen()
		}
		r.m.nodes.max, r.m.dentries.max, r.m.streams.max, r.m.sessions.rows.max = rng.IntN(3), rng.IntN(3), rng.IntN(3), rng.IntN(3)
	})
	crashing := newReplica(t, "the one that crashes", func(r *replica) {
		switch rng.IntN(150) {
		case 0, 1, 2:
			require.NoError(t, <-r.data.State.Flush())
		case 3:
			r.crash(rng)
		}
	})
	installs, cleaned, fired := 0, 0, 0
	behind := newReplica(t, "the one that falls behind", func(*replica) {})
	traffic := newTraffic(rand.New(rand.NewPCG(seed, 3)), quiet.m)
	traffic.blocks.t = t
	var log []logged
	// What is seldom possible may take longer to come.
	for i := 0; i < *replicaEntries || traffic.missing() != "" && i < 10**replicaEntries; i++ {
		log = append(log, traffic.next(uint64(i+1)))
		end := uint64(len(log))
		if due, ok := quiet.m.NextDue(); ok && log[i].entry != nil && due <= log[i].entry.Time {
			fired++
		}
		quiet.catchUp(log, end)
		traffic.learn(&log[i])
		if rng.IntN(3) > 0 {
			crashing.catchUp(log, end)
		}
		if rng.IntN(10) > 0 {
			small.catchUp(log, end)
		}
		switch rng.IntN(40) {
		case 0:
			behind.catchUp(log, min(end, 1+rng.Uint64N(end)))
		case 1:
			behind.install([]*replica{quiet, small, crashing}[rng.IntN(3)])
			installs++
		case 2:
			behind.reopen()
		}
		if i%100 != 99 && i < *replicaEntries-1 {
			continue
		}
		quiet.check()
		traffic.blocks.follow(quiet.m, quiet.seen.freed)
		quiet.seen.freed = quiet.seen.freed[:0]
		cleaned += quiet.cleaned()
		for _, r := range []*replica{small, crashing, behind} {
			r.catchUp(log, end)
			if r.hash() != quiet.hash() {
				require.Equal(t, string(quiet.dump()), string(r.dump()), "%s, entry %d", r.name, end)
			}
		}
	}
	t.Logf("%d snapshots, %d times a stream that was cleaned up, %d entries with something due%s", installs, cleaned, fired, traffic.counts())
	require.Positive(t, fired)
	require.Positive(t, installs)
	require.Positive(t, cleaned)
	require.Empty(t, traffic.missing(), "a command that never succeeded")
}

// TestReplaceShowsOneState: a reader beside Replace sees the state before or
// after, never a mixture.
func TestReplaceShowsOneState(t *testing.T) {
	r, donor := newRig(t), newRig(t)
	var f gearsfs.Ino
	for _, r := range []*rig{r, donor} {
		f = r.create(1, "f", 0o644)
		r.do(&wire.Write{Ino: uint64(f), Data: []byte("before")})
	}
	donor.do(&wire.Write{Ino: uint64(f), Data: make([]byte, 1<<20)})
	donor.do(&wire.Write{Ino: uint64(f), Pos: 0, Data: []byte("after!")})
	index, _ := donor.m.Applied()
	s, err := donor.data.MakeSnapshot()
	require.NoError(t, err)
	defer s.Close()
	in, err := r.data.Receive(s.ID, s.Files)
	require.NoError(t, err)
	for _, file := range s.Files {
		b, err := s.ReadAt(file.Name, 0, int(file.Bytes))
		require.NoError(t, err)
		require.NoError(t, in.Write(file.Name, 0, b))
	}
	require.NoError(t, in.Verify())

	stop, done := make(chan struct{}), make(chan error, 1)
	sizes := map[int]int{}
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			c, err := r.m.Read(f, 0, 2<<20, gearsfs.Root, nil)
			b := c.Data
			if want := map[int]string{6: "before", 1 << 20: "after!"}[len(b)]; err == nil && string(b[:6]) != want {
				err = fmt.Errorf("read %d bytes, %q", len(b), b[:min(len(b), 6)])
			}
			if err != nil {
				done <- err
				return
			}
			sizes[len(b)]++
		}
	}()
	require.NoError(t, r.m.Replace(func() error {
		if err := r.data.Install(in, index, 1, nil); err != nil {
			return err
		}
		return nil
	}))
	require.Equal(t, 1, r.seen.members)
	r.index = index
	require.Equal(t, "after!", string(r.read(f, 0, 6)))
	close(stop)
	require.NoError(t, <-done)
	require.Equal(t, string(donor.dump()), string(r.dump()))
	r.check()
}

// TestReplaceFails: the Machine goes on with what the store has.
func TestReplaceFails(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	require.ErrorIs(t, r.m.Replace(func() error { return gearsfs.ErrNoSpace }), gearsfs.ErrNoSpace)
	require.Zero(t, r.seen.members)
	require.EqualValues(t, 2, r.attr(d).Nlink)
	r.mkdir(d, "e", 0o755)
	r.check()
	require.ErrorIs(t, r.m.Replace(func() error {
		r.data.State.Set(persist.VolumeKey(), []byte{0xff})
		return r.data.State.Commit()
	}), gearsfs.ErrDamaged)
	_, err := r.m.Apply(r.index+1, 1, &wire.Entry{})
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
}
