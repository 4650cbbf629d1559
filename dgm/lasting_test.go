package dgm_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// will is what a process writes down for the next.
type will struct {
	id      gearsfs.SessionID
	seqs    uint64
	numbers []dgm.Numbered
	heirs   uint64
}

func (w *will) lasting(opens map[gearsfs.Ino]uint64) *dgm.Lasting {
	l := &dgm.Lasting{Session: w.id, NextSeq: w.seqs, Attempt: w.heirs << 32, Opens: opens, Numbers: w.numbers,
		Note: func(id gearsfs.SessionID, seqs uint64) { w.id, w.seqs = id, seqs }}
	w.heirs++
	return l
}

// once is the context of a request, and what an earlier process did of it.
func (w *will) once(t *testing.T, before ...dgm.Numbered) (context.Context, *dgm.Once) {
	o := &dgm.Once{Record: func(n dgm.Numbered) { w.numbers = append(w.numbers, n) }, Before: before}
	return dgm.WithOnce(t.Context(), o), o
}

// loseTake has a process lease a record that nobody hears of, and begin another take.
func loseTake(t *testing.T, w *will, m dgm.Manager) (lost, never dgm.Numbered) {
	t.Helper()
	put(t, m, "lost", "record")
	had := len(w.numbers)
	request, _ := w.once(t)
	take := dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"lost"}, Max: 1, NoWait: true, Lease: true}
	_, err := m.Take(request, take)
	require.NoError(t, err)
	request, _ = w.once(t)
	_, err = m.Take(request, take)
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	require.Len(t, w.numbers, had+2)
	return w.numbers[had], w.numbers[had+1]
}

// forgo has the next process give that up.
func forgo(t *testing.T, m, other dgm.Manager, lost, never dgm.Numbered) {
	t.Helper()
	take := dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"lost"}, Max: 1, NoWait: true, Lease: true}
	_, err := other.Take(t.Context(), take)
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "it is leased, as its request may be begun again")
	forgoes := m.(interface {
		Forgo(context.Context, []dgm.Numbered) error
	})
	require.NoError(t, forgoes.Forgo(t.Context(), []dgm.Numbered{lost, never}))
	records, err := other.Take(t.Context(), take)
	require.NoError(t, err, "nobody has it any more")
	require.Equal(t, "record", string(records[0].Data))
}

// What a take leased that is not begun again goes back, though its stream is in
// memory: the log does not know of it.
func TestForgoOfATakeInMemory(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m, path := local(t, vol), serveUnix(t, vol)
	intoMemory(t, m, "lost")
	b, w := newBridge(t, path), new(will)
	lost, never := loseTake(t, w, dial(t, b.addr(), dgm.RemoteOptions{Lasting: w.lasting(nil)}))
	b.cut()
	second := dial(t, "unix:"+path, dgm.RemoteOptions{Lasting: w.lasting(nil)})
	forgo(t, second, m, lost, never)
}

// A process that dies is followed by one that goes on with its session: what it
// leased stays leased, what it had open stays, and what it did is not done again.
func TestLastingSession(t *testing.T) {
	testLasting := func(t *testing.T, die, next func(*will, map[gearsfs.Ino]uint64) dgm.Manager, other func() dgm.Manager) {
		w := new(will)
		first := die(w, nil)
		attr, err := first.Make(t.Context(), gearsfs.RootIno, "file", dgm.Make{Mode: 0o100644})
		require.NoError(t, err)
		_, err = first.Open(t.Context(), attr.Ino)
		require.NoError(t, err)
		require.NoError(t, first.Unlink(t.Context(), gearsfs.RootIno, "file"))
		put(t, first, "leased", "record")
		take := dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"leased"}, Max: 1, NoWait: true, Lease: true}
		leased, err := first.Take(t.Context(), take)
		require.NoError(t, err)

		request, _ := w.once(t)
		_, err = first.Make(request, gearsfs.RootIno, "dir", dgm.Make{Mode: 0o040755})
		require.NoError(t, err)
		_, err = first.Append(request, attr.Ino, []byte("once"))
		require.NoError(t, err)
		require.Len(t, w.numbers, 2)
		lost, never := loseTake(t, w, first)

		second := next(w, map[gearsfs.Ino]uint64{attr.Ino: 1})
		again, o := w.once(t, w.numbers...)
		interrupted, cancel := context.WithCancel(again)
		cancel()
		_, err = second.Append(interrupted, attr.Ino, []byte("once"))
		require.NoError(t, err, "of the same kind, though not in the same order; and it was done, whoever does not wait any more")
		_, err = second.Make(again, gearsfs.RootIno, "dir", dgm.Make{Mode: 0o040755})
		require.NoError(t, err, "it was made by the first")
		assert.True(t, o.Made())
		o.Done()
		_, err = second.Make(t.Context(), gearsfs.RootIno, "dir", dgm.Make{Mode: 0o040755})
		require.ErrorIs(t, err, gearsfs.ErrExists, "another request is another")
		data, err := second.Read(t.Context(), attr.Ino, 0, 100, nil)
		require.NoError(t, err, "it is open")
		assert.Equal(t, "once", string(data))

		m := other()
		_, err = m.Take(t.Context(), take)
		require.ErrorIs(t, err, gearsfs.ErrEmpty, "it is leased")
		forgo(t, second, m, lost, never)
		require.NoError(t, second.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*leased[0].Receipt}}))
		require.NoError(t, second.Release(t.Context(), attr.Ino))
		put(t, second, "tick", "x") // behind the release
		_, err = m.GetAttr(t.Context(), attr.Ino)
		assert.ErrorIs(t, err, gearsfs.ErrStale, "nobody has it open")
	}

	t.Run("over a unix socket", func(t *testing.T) {
		vol := openVolume(t, t.TempDir())
		path := serveUnix(t, vol)
		b := newBridge(t, path)
		testLasting(t, func(w *will, opens map[gearsfs.Ino]uint64) dgm.Manager {
			return dial(t, b.addr(), dgm.RemoteOptions{Lasting: w.lasting(opens)})
		}, func(w *will, opens map[gearsfs.Ino]uint64) dgm.Manager {
			b.cut()
			return dial(t, "unix:"+path, dgm.RemoteOptions{Lasting: w.lasting(opens)})
		}, func() dgm.Manager { return local(t, vol) })
	})
	t.Run("of a node that dies too", func(t *testing.T) {
		dir := t.TempDir()
		var vol *dgm.Volume
		session := func(w *will, opens map[gearsfs.Ino]uint64) dgm.Manager {
			vol = openVolume(t, dir)
			m, err := vol.LocalWith(dgm.RemoteOptions{Client: dgm.Client{Caller: gearsfs.Root}, Lasting: w.lasting(opens)})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, m.Close()) })
			return m
		}
		testLasting(t, session, func(w *will, opens map[gearsfs.Ino]uint64) dgm.Manager {
			require.NoError(t, vol.Close()) // it ends without a goodbye of the session
			return session(w, opens)
		}, func() dgm.Manager { return local(t, vol) })
	})
}
