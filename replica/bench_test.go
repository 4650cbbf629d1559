package replica

import (
	"fmt"
	"sync"
	"testing"
	"time"

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
	if len(l.entries) > 1000 {
		last := l.entries[len(l.entries)-1]
		l.front, l.entries = LogEntry{Index: last.Index, Term: last.Term}, l.entries[:0]
	}
	l.mu.Unlock()
	return l.memLog.Append(entries, hard)
}

func openBench(b *testing.B) *Group {
	machine := new(idleMachine)
	g, err := Open(Config{
		ID: 7, Log: new(shortLog), Machine: machine, Flush: machine.flush, Clock: time.Now,
		Fatal: func(err error) { panic(err) },
	})
	if err != nil {
		b.Fatal(err)
	}
	return g
}

// BenchmarkPropose is puts of 128 bytes from n clients, each waiting for the
// answer before it sends the next, with a log in memory and an idle machine.
func BenchmarkPropose(b *testing.B) {
	for _, durable := range []bool{false, true} {
		for _, clients := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("durable=%v/clients=%d", durable, clients), func(b *testing.B) {
				g := openBench(b)
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
				if err := g.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
