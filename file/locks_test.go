package file

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// lockBytes is how much of a file the model's locks are about.
const lockBytes = 24

// lockModel is what each owner has of each byte.
type lockModel map[lockOwner]*[lockBytes]uint32

// free reports whether nobody's lock is in the way of one.
func (m lockModel) free(by lockOwner, kind uint32, start, end int) bool {
	for other, bytes := range m {
		if other == by || other.flock != by.flock {
			continue
		}
		for i := start; i <= end; i++ {
			if bytes[i] == lockWrite || kind == lockWrite && bytes[i] != lockNone {
				return false
			}
		}
	}
	return true
}

func (m lockModel) set(by lockOwner, kind uint32, start, end int) {
	if m[by] == nil {
		m[by] = new([lockBytes]uint32)
	}
	for i := start; i <= end; i++ {
		m[by][i] = kind
	}
}

// runs is how many rows an owner's locks are at least.
func (m lockModel) runs() (n int) {
	for _, bytes := range m {
		was := uint32(lockNone)
		for _, kind := range bytes {
			if kind != lockNone && kind != was {
				n++
			}
			was = kind
		}
	}
	return n
}

// TestLocksModel makes random locks and compares each byte with a plain model.
func TestLocksModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	r := newRig(t)
	files := []gearsfs.Ino{r.create(1, "f", 0o644), r.create(1, "g", 0o644)}
	models := map[gearsfs.Ino]lockModel{files[0]: {}, files[1]: {}}
	sessions := []gearsfs.SessionID{{Minted: rigStart, Salt: 1}, {Minted: rigStart, Salt: 2}, {Minted: rigStart, Salt: 3}}
	granted, refused := 0, 0
	for range *modelSteps {
		id, f := pick(rng, sessions), pick(rng, files)
		if rng.IntN(60) == 0 {
			r.do(&wire.EndSession{SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: true})
			for _, m := range models {
				for by := range m {
					if by.session == id {
						delete(m, by)
					}
				}
			}
		}
		start := rng.IntN(lockBytes)
		end := start + rng.IntN(lockBytes-start)
		by := lockOwner{id, rng.Uint64N(2), rng.IntN(2) == 0}
		kind := rng.Uint32N(3)
		op := &wire.Lock{Ino: uint64(f), Owner: by.owner, Flock: by.flock, Kind: kind, Start: uint64(start), End: uint64(end)}
		free := kind == lockNone || models[f].free(by, kind, start, end)
		if kind != lockNone {
			held, _ := r.m.LockInTheWay(id, op)
			require.Equal(t, free, held == nil)
		}
		err := answerError(r.entry(lockBy(id, op))[0])
		if !free {
			require.ErrorIs(t, err, gearsfs.ErrLocked)
			refused++
		} else {
			require.NoError(t, err)
			models[f].set(by, kind, start, end)
			granted++
		}
		if rng.IntN(50) == 0 {
			r.reopen()
		}
		r.check()
		for ino, m := range models {
			rows := 0
			if l := r.m.locks.files[ino]; l != nil {
				rows = len(l.list)
			}
			require.Equal(t, m.runs(), rows)
		}
	}
	t.Log(granted, "granted,", refused, "refused")
}

func lockBy(id gearsfs.SessionID, op *wire.Lock) *wire.Command { return by(id, as(gearsfs.Root, op)) }

func TestLocksEnd(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o640)
	id, other := gearsfs.SessionID{Minted: rigStart, Salt: 1}, gearsfs.SessionID{Minted: rigStart, Salt: 2}
	whole := &wire.Lock{Ino: uint64(f), Kind: lockWrite, End: gearsfs.LockEnd}
	lock := func(id gearsfs.SessionID) error { return answerError(r.entry(lockBy(id, whole))[0]) }
	require.NoError(t, lock(id))
	require.ErrorIs(t, lock(other), gearsfs.ErrLocked)
	known, err := r.m.Sessions()
	require.NoError(t, err)
	require.Contains(t, known, id, "the next leader adopts it")
	cmd := by(id, as(gearsfs.Root, &wire.Confirm{}))
	cmd.Seq, cmd.Close = 1, true
	first := lockBy(id, whole)
	first.Seq = 1
	require.Zero(t, r.entry(first)[0].Code)
	cmd.Seq = 2
	require.Zero(t, r.entry(cmd)[0].Code)
	require.NoError(t, lock(other), "a closed session has none")

	r.do(r.unlink(1, "f", false))
	r.check()
	require.ErrorIs(t, lock(id), gearsfs.ErrStale)
	require.Empty(t, r.m.locks.of)
	require.NotContains(t, string(r.dump()), `"l\x00`)

	g := r.create(1, "g", 0o640)
	asOther := by(other, as(gearsfs.Caller{UID: 7, GIDs: []uint32{7}}, &wire.Lock{Ino: uint64(g), Kind: lockRead}))
	require.ErrorIs(t, answerError(r.entry(asOther)[0]), gearsfs.ErrAccess)
}

func TestLocksAreBounded(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	id := gearsfs.SessionID{Minted: rigStart, Salt: 1}
	var all []*wire.Command
	for i := range uint64(locksPerFileMax) {
		all = append(all, lockBy(id, &wire.Lock{Ino: uint64(f), Kind: lockRead, Start: 2 * i, End: 2 * i}))
	}
	answers := r.entry(all...)
	require.Zero(t, answers[locksPerFileMax-3].Code)
	require.ErrorIs(t, answerError(answers[locksPerFileMax-1]), gearsfs.ErrLocks)
	require.NoError(t, answerError(r.entry(lockBy(id, &wire.Lock{Ino: uint64(f), End: gearsfs.LockEnd}))[0]))
	r.check()
}
