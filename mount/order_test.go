package mount

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// slowQueue is a Manager whose puts wait to be let through.
type slowQueue struct {
	dgm.Manager
	puts []string // that have come
	gate chan struct{}
}

func (q *slowQueue) Stream(context.Context, gearsfs.File, gearsfs.Key) (gearsfs.StreamInfo, error) {
	return gearsfs.StreamInfo{}, nil
}

func (q *slowQueue) Put(_ context.Context, p dgm.Put) (dgm.PutResult, error) {
	q.puts = append(q.puts, string(p.Records[0].Data))
	<-q.gate
	return dgm.PutResult{}, nil
}

// worker is a server as of one process in a row; the journal is all that the next
// one has of it.
type worker struct {
	entrance
	fh uint64
}

func newWorker(t *testing.T, m dgm.Manager, k *keeper) worker {
	return worker{entrance{newServer(t.Context(), m, Options{Succession: &Succession{keeper: k}}, slog.Default())}, 0}
}

// opened has a worker give out a handle.
func (w *worker) opened(unique uint64, h handle) {
	c := w.begin(&fuse.InHeader{Unique: unique}, nil)
	defer c.leave()
	w.fh = c.handles.add(h)
	c.call.opened(w.fh, fuse.OK)
}

// next is the worker that takes over from one that dies now.
func (w *worker) next(t *testing.T, m dgm.Manager) worker {
	next := newWorker(t, m, w.keeper)
	next.restore(legacyOf(t, w.keeper))
	next.fh = w.fh
	return next
}

func (w *worker) header(unique uint64, pid int) fuse.InHeader {
	return fuse.InHeader{Unique: unique, NodeId: controlBit | 1, Caller: fuse.Caller{Pid: uint32(pid)}}
}

func (w *worker) write(unique uint64, data string) fuse.Status {
	_, st := w.Write(nil, &fuse.WriteIn{InHeader: w.header(unique, os.Getpid()), Fh: w.fh}, []byte(data))
	return st
}

func (w *worker) flush(unique uint64, pid int) fuse.Status {
	return w.Flush(nil, &fuse.FlushIn{InHeader: w.header(unique, pid), Fh: w.fh})
}

// A record that its opener's close commits is whole, and there, when the process
// dies meanwhile and the next is sent the close again: whatever others have done with
// the descriptor between.
func TestCommitIsHandedOnWhole(t *testing.T) {
	const other = 1 // a process
	for name, between := range map[string]func(*worker){
		"nothing":       func(*worker) {},
		"another write": func(w *worker) { w.write(8, "of the next") },
		"a child's close, which began before": func(w *worker) {
			c := w.beginOnce(&fuse.InHeader{Unique: 8}, nil, nil)
			defer c.leave()
			p := w.handles.get(w.fh).(*putter)
			p.closedBy(&c.server, w.fh, process{id: other})
			c.answer(fuse.OK)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &slowQueue{gate: make(chan struct{})}
				w := newWorker(t, q, newKeeper(t))
				w.opened(2, &putter{at: place{kind: kindPut, ino: 5, key: "k"}, opener: uint32(os.Getpid()), turn: newTurn()})
				require.Equal(t, fuse.OK, w.write(4, "rec"))
				require.Equal(t, fuse.OK, w.flush(5, other), "a child was executed")
				require.Equal(t, fuse.OK, w.write(6, "ord"))
				go w.flush(7, os.Getpid())
				synctest.Wait()
				require.Equal(t, []string{"record"}, q.puts, "it is under way")
				go between(&w)
				synctest.Wait()

				again := &slowQueue{gate: make(chan struct{})}
				next := w.next(t, again)
				close(again.gate)
				assert.Equal(t, fuse.OK, next.flush(7|resent, os.Getpid()))
				assert.Equal(t, []string{"record"}, again.puts)
				close(q.gate) // in a process that is dead
				synctest.Wait()
			})
		})
	}
}

// A record that was read, and one that is being read, are what the next process
// takes them for, whatever a child's close says meanwhile.
func TestReadIsHandedOnWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		record := gearsfs.Record{Data: []byte("record"), Receipt: &gearsfs.Receipt{Ino: 5, Key: "k", Fence: 1}}
		q := &taking{record: record}
		w := newWorker(t, q, newKeeper(t))
		h := newTaker(place{kind: kindTake, ino: 5, key: "k"}, true)
		w.opened(2, h)
		c := w.beginOnce(&fuse.InHeader{Unique: 4}, nil, nil)
		in := &fuse.ReadIn{InHeader: w.header(4, os.Getpid()), Fh: w.fh, Size: 100}
		data, st := h.read(&c.server, nil, in, nil)
		require.Equal(t, fuse.OK, st)
		require.Equal(t, "record", string(data))
		require.Equal(t, fuse.OK, w.flush(6, 1), "a child is executed before the answer is written down")

		next := w.next(t, q)
		in.Unique |= resent
		result, st := next.Read(nil, in, nil)
		require.Equal(t, fuse.OK, st)
		got, st := result.Bytes(make([]byte, 100))
		require.Equal(t, fuse.OK, st)
		assert.Equal(t, "record", string(got))
		assert.Empty(t, q.settled)
		c.leave()
	})
}

// taking is a Manager whose takes give one record.
type taking struct {
	dgm.Manager
	record  gearsfs.Record
	refuse  error // what the next Settle says
	settled []gearsfs.Receipt
	patient bool // who asked last waits for a node that is away
}

func (q *taking) Take(ctx context.Context, _ dgm.Take) ([]gearsfs.Record, error) {
	q.patient = isPatient(ctx)
	r := q.record
	r.Data = slices.Clone(r.Data)
	return []gearsfs.Record{r}, nil
}

func isPatient(ctx context.Context) bool {
	o, _ := ctx.Value(dgm.OnceKey).(*dgm.Once)
	return o != nil && o.Patient
}

func (q *taking) Settle(ctx context.Context, s dgm.Settle) error {
	q.patient = isPatient(ctx)
	if err := q.refuse; err != nil {
		q.refuse = nil
		return err
	}
	q.settled = append(q.settled, s.Receipts...)
	return nil
}

// Who is interrupted while the volume is asked to forget a record reads again, and
// then it does: also where the process has died between.
func TestInterruptedAcknowledgement(t *testing.T) {
	for name, again := range map[string]func(*worker, *taking) worker{
		"by the same process": func(w *worker, _ *taking) worker { return *w },
		"by the next":         func(w *worker, q *taking) worker { return w.next(t, q) },
	} {
		t.Run(name, func(t *testing.T) {
			q := &taking{record: gearsfs.Record{Data: []byte("record"), Receipt: &gearsfs.Receipt{Ino: 5, Key: "k", Fence: 1}}}
			w := newWorker(t, q, newKeeper(t))
			w.opened(2, newTaker(place{kind: kindTake, ino: 5, key: "k"}, true))
			in := &fuse.ReadIn{InHeader: w.header(4, os.Getpid()), Fh: w.fh, Size: 100}
			_, st := w.Read(nil, in, nil)
			require.Equal(t, fuse.OK, st)
			in.Unique = 6
			q.refuse = context.Canceled
			_, st = w.Read(nil, in, nil)
			require.Equal(t, fuse.EINTR, st)
			require.Empty(t, q.settled)

			w = again(&w, q)
			for in.Unique = 8; in.Unique < 12; in.Unique += 2 {
				result, st := w.Read(nil, in, nil)
				require.Equal(t, fuse.OK, st)
				require.Zero(t, result.Size(), "the end")
			}
			require.Equal(t, []gearsfs.Receipt{*q.record.Receipt}, q.settled, "once")
		})
	}
}

// waitingQueue is a Manager whose puts are made when the gate is open, where nobody
// stops waiting before.
type waitingQueue struct {
	dgm.Manager
	gate chan struct{}
	puts []string
}

func (q *waitingQueue) Stream(context.Context, gearsfs.File, gearsfs.Key) (gearsfs.StreamInfo, error) {
	return gearsfs.StreamInfo{}, nil
}

func (q *waitingQueue) Put(ctx context.Context, p dgm.Put) (dgm.PutResult, error) {
	select {
	case <-q.gate:
		q.puts = append(q.puts, string(p.Records[0].Data))
		return dgm.PutResult{}, nil
	case <-ctx.Done():
		return dgm.PutResult{}, ctx.Err()
	}
}

// A close that puts a record can't be made again: a signal that its process lives on
// with, while the node is away, does not end it.
func TestCloseOutlastsSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &waitingQueue{gate: make(chan struct{})}
		w := newWorker(t, q, newKeeper(t))
		w.opened(2, &putter{at: place{kind: kindPut, ino: 5, key: "k"}, opener: uint32(os.Getpid()), turn: newTurn()})
		require.Equal(t, fuse.OK, w.write(4, "record"))
		cancel, answer := make(chan struct{}), make(chan fuse.Status, 1)
		go func() {
			answer <- w.Flush(cancel, &fuse.FlushIn{InHeader: w.header(6, os.Getpid()), Fh: w.fh})
		}()
		synctest.Wait()
		close(cancel)
		for range 2 * patienceBeats {
			w.calls.look()
			synctest.Wait()
		}
		require.Empty(t, answer)
		close(q.gate)
		require.Equal(t, fuse.OK, <-answer)
		require.Equal(t, []string{"record"}, q.puts)
	})
}

// What a last close gives back or acknowledges waits for the node as long as the mount
// lives: nobody else would do it.
func TestLastCloseIsPatient(t *testing.T) {
	q := &taking{record: gearsfs.Record{Data: []byte("record"), Receipt: &gearsfs.Receipt{Ino: 5, Key: "k", Fence: 1}}}
	w := newWorker(t, q, newKeeper(t))
	w.opened(2, newTaker(place{kind: kindTake, ino: 5, key: "k"}, true))
	_, st := w.Read(nil, &fuse.ReadIn{InHeader: w.header(4, os.Getpid()), Fh: w.fh, Size: 100}, nil)
	require.Equal(t, fuse.OK, st)
	require.False(t, q.patient)
	w.Release(nil, &fuse.ReleaseIn{InHeader: w.header(6, 0), Fh: w.fh})
	require.Len(t, q.settled, 1)
	require.True(t, q.patient)
}
