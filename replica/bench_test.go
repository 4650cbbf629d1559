package replica

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// idleMachine answers without doing anything.
type idleMachine struct {
	memMachine
	answers []*wire.Answer
}

func (m *idleMachine) Apply(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	m.state.index, m.state.term = index, term
	for len(m.answers) < len(e.Commands) {
		m.answers = append(m.answers, &wire.Answer{})
	}
	return m.answers[:len(e.Commands):len(e.Commands)], nil
}

// shortLog keeps only its last entries, as they are.
type shortLog struct{ memLog }

func (l *shortLog) Append(entries []LogEntry, hard []byte) error {
	l.mu.Lock()
	if n := len(l.entries); n > 20000 {
		l.front = LogEntry{Index: l.entries[n-10001].Index, Term: l.entries[n-10001].Term}
		l.entries = append(l.entries[:0], l.entries[n-10000:]...)
	}
	l.mu.Unlock()
	return l.memLog.Append(entries, hard)
}

func openBench(b *testing.B, log Log) *Group {
	machine := new(idleMachine)
	g, err := Open(Config{
		ID: 7, Log: log, Machine: machine, Flush: machine.flush, Clock: time.Now,
		Fatal: func(err error) { panic(err) },
	})
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func openData(b *testing.B, dir string) *persist.Data {
	data, err := persist.Open(dir, persist.Options{Create: true, Name: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	return data
}

func closeAll(b *testing.B, cs ...io.Closer) {
	for _, c := range cs {
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// propose puts b.N records of 128 bytes from n clients, each waiting for the
// answer before it sends the next.
func propose(b *testing.B, g *Group, clients int, durable bool) {
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			done := make(chan struct{}, 1)
			p := &Proposal{Command: put(string(make([]byte, 128))), Durable: durable,
				Done: func(*wire.Answer, error) { done <- struct{}{} }}
			for i := c; i < b.N; i += clients {
				g.Propose(p)
				<-done
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
}

// BenchmarkPropose has a log in memory and an idle machine.
func BenchmarkPropose(b *testing.B) {
	for _, durable := range []bool{false, true} {
		for _, clients := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("durable=%v/clients=%d", durable, clients), func(b *testing.B) {
				g := openBench(b, new(shortLog))
				propose(b, g, clients, durable)
				closeAll(b, g)
			})
		}
	}
}

// BenchmarkDisk has the log on disk and an idle machine; raw is an append and a
// sync of the log in turn.
func BenchmarkDisk(b *testing.B) {
	b.Run("raw", func(b *testing.B) {
		data := openData(b, b.TempDir())
		entry := make([]byte, 160)
		for i := range b.N {
			if err := data.Log.Append([]LogEntry{{Index: uint64(i + 1), Term: 1, Data: entry}}, nil); err != nil {
				b.Fatal(err)
			}
			if err := data.Log.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		closeAll(b, data)
	})
	for _, durable := range []bool{false, true} {
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("durable=%v/clients=%d", durable, clients), func(b *testing.B) {
				data := openData(b, b.TempDir())
				g := openBench(b, data.Log)
				propose(b, g, clients, durable)
				closeAll(b, g, data)
			})
		}
	}
}

// BenchmarkReplay opens a log on disk of 100 MiB, 32 puts of 128 bytes an
// entry, into an idle machine.
func BenchmarkReplay(b *testing.B) {
	dir := b.TempDir()
	data := openData(b, dir)
	commands := make([]*wire.Command, 32)
	for i := range commands {
		commands[i] = put(string(make([]byte, 128)))
	}
	g := openBench(b, data.Log)
	machine := g.cfg.Machine.(*idleMachine)
	if err := g.Close(); err != nil {
		b.Fatal(err)
	}
	entry, err := (&wire.Entry{Time: 1, Commands: commands}).MarshalVT()
	if err != nil {
		b.Fatal(err)
	}
	index, term := machine.Applied()
	first := machine.state
	for size := 0; size < 100<<20; size += len(entry) {
		index++
		if err := data.Log.Append([]LogEntry{{Index: index, Term: term, Data: entry}}, nil); err != nil {
			b.Fatal(err)
		}
	}
	closeAll(b, data)
	b.SetBytes(100 << 20)
	for b.Loop() {
		data := openData(b, dir)
		machine := &idleMachine{memMachine: memMachine{state: first}}
		g, err := Open(Config{
			ID: 7, Log: data.Log, Machine: machine, Clock: time.Now,
			Flush: func() <-chan error { return nil },
			Fatal: func(error) {},
		})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.fail(gearsfs.ErrClosed) // so that the log stays
		if err := g.Close(); err == nil {
			b.Fatal("closed well")
		}
		closeAll(b, data)
		b.StartTimer()
	}
}

// wire3 joins Groups in one process.
type wire3 struct {
	mu     sync.RWMutex
	groups map[gearsfs.MemberID]*Group
	sent   atomic.Int64 // messages
}

func (w *wire3) Send(to gearsfs.MemberID, messages [][]byte) {
	w.mu.RLock()
	g := w.groups[to]
	w.mu.RUnlock()
	w.sent.Add(int64(len(messages)))
	for _, m := range messages {
		if g != nil {
			g.Receive(slices.Clone(m))
		}
	}
}

// openThree makes a group of three and returns its leader and all Groups.
func openThree(b *testing.B, log func() Log) (*Group, []*Group, *wire3) {
	w := &wire3{groups: make(map[gearsfs.MemberID]*Group)}
	var all []*Group
	for id := range uint64(3) {
		machine := new(idleMachine)
		g, err := Open(Config{
			ID: id + 1, Joined: id > 0, Log: log(), Machine: machine, Flush: machine.flush, Clock: time.Now, Peers: w,
			Fatal: func(err error) { panic(err) },
		})
		if err != nil {
			b.Fatal(err)
		}
		w.mu.Lock()
		w.groups[gearsfs.MemberID(id+1)] = g
		w.mu.Unlock()
		all = append(all, g)
		if id > 0 {
			if err := all[0].AddLearner(b.Context(), gearsfs.MemberID(id+1), nil); err != nil {
				b.Fatal(err)
			}
			for s := g.Status(); len(s.Voters) != int(id)+1 || s.Applied < 3; s = g.Status() {
				select { // nothing announces that
				case <-time.After(time.Millisecond):
				case <-b.Context().Done():
					b.Fatal(b.Context().Err())
				}
			}
		}
	}
	return all[0], all, w
}

// BenchmarkThree is BenchmarkPropose and BenchmarkDisk in a group of three in
// one process; all three logs are on one disk then.
func BenchmarkThree(b *testing.B) {
	for _, disk := range []bool{false, true} {
		for _, clients := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("disk=%v/clients=%d", disk, clients), func(b *testing.B) {
				var datas []io.Closer
				leader, all, w := openThree(b, func() Log {
					if !disk {
						return new(shortLog)
					}
					data := openData(b, b.TempDir())
					datas = append(datas, data)
					return data.Log
				})
				before := w.sent.Load()
				propose(b, leader, clients, true)
				b.ReportMetric(float64(w.sent.Load()-before)/float64(b.N), "messages/put")
				b.ReportMetric(float64(leader.Status().Last)/float64(b.N), "entries/put")
				for i := range all {
					closeAll(b, all[len(all)-1-i])
				}
				closeAll(b, datas...)
			})
		}
	}
}
