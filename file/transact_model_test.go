package file

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// clone copies what a transaction may change.
func (m *queueModel) clone() *queueModel {
	c := &queueModel{streams: make(map[string]*streamModel), fence: m.fence, now: m.now, blocked: m.blocked, settled: make(map[uint64]bool)}
	for key, st := range m.streams {
		s := *st
		s.ids = slices.Clone(st.ids)
		s.recs = nil
		for _, r := range st.recs {
			rec := *r
			s.recs = append(s.recs, &rec)
		}
		c.streams[key] = &s
	}
	return c
}

// transact does the steps one by one on a copy, which it takes over where none
// failed.
func (m *queueModel) transact(s *sessionModel, op *wire.Transact, now uint64) (*wire.Answer, error) {
	w := m.clone()
	a := &wire.Answer{Steps: make([]*wire.Answer, len(op.Steps))}
	var failure error
	m.failed = 0
	for phase := range phases {
		for i, step := range op.Steps {
			if phaseOf(step) != phase {
				continue
			}
			var err error
			a.Steps[i], err = w.step(m, s, step, now)
			if err == nil {
				continue
			}
			if !mayPass(&txStep{t: w.tally(step)}, step, err) {
				m.failed = i + 1
				return nil, err
			}
			if failure == nil {
				m.failed, failure = i+1, err
			}
		}
	}
	if failure == nil {
		m.streams, m.fence = w.streams, w.fence
	}
	return a, failure
}

// step does one step; before is what the transaction found.
func (m *queueModel) step(before *queueModel, s *sessionModel, step *wire.Step, now uint64) (*wire.Answer, error) {
	switch op := step.Op.(type) {
	case *wire.Step_Condition:
		return &wire.Answer{}, before.condition(op.Condition)
	case *wire.Step_Take:
		return m.takeAll(s, op.Take)
	case *wire.Step_Look:
		a := &wire.Answer{}
		for _, r := range before.ready(op.Look.Key) {
			if len(a.Records) < int(op.Look.Max) {
				a.Records = append(a.Records, &wire.TakenRecord{Key: op.Look.Key, Seq: r.seq, Data: []byte(r.data), Type: r.typ, Deliveries: r.deliveries})
			}
		}
		return a, nil
	case *wire.Step_Settle:
		return m.settle(s, op.Settle)
	case *wire.Step_Update:
		return m.update(op.Update, now)
	case *wire.Step_Put:
		return m.putNow(op.Put, now)
	}
	panic("no such step in the model")
}

func (m *queueModel) ready(key string) (recs []*recModel) {
	if st := m.streams[key]; st != nil {
		for _, r := range st.recs {
			if r.ready() {
				recs = append(recs, r)
			}
		}
	}
	return recs
}

func (m *queueModel) condition(c *wire.Condition) error {
	var newest, head uint64
	left := 0
	if st := m.streams[c.Key]; st != nil {
		newest, left = st.next-1, len(st.recs)
	}
	ready := m.ready(c.Key)
	if len(ready) > 0 {
		head = ready[0].seq
	}
	if c.NewestSeq != nil && *c.NewestSeq != newest || c.HeadSeq != nil && *c.HeadSeq != head ||
		c.Empty != nil && *c.Empty != (left == 0) || uint64(len(ready)) < c.AtLeast {
		return gearsfs.ErrUnmet
	}
	return nil
}

// takeAll takes all that a take asks for from the first key that has it.
func (m *queueModel) takeAll(s *sessionModel, op *wire.Take) (*wire.Answer, error) {
	ended := true
	for _, key := range op.Keys {
		if len(m.ready(key)) >= int(op.Max) {
			one := proto.CloneOf(op)
			one.Keys = []string{key}
			return m.take(s, one)
		}
		st := m.streams[key]
		ended = ended && st != nil && st.sealed && len(st.recs) < int(op.Max)
	}
	if ended {
		return nil, gearsfs.ErrEnd
	}
	return nil, gearsfs.ErrEmpty
}

// putNow is a put that waits for nobody.
func (m *queueModel) putNow(op *wire.Put, now uint64) (*wire.Answer, error) {
	st := m.streams[op.Key]
	fresh, seen := st.fresh(op.Records, map[string]bool{}, now)
	if err := st.admits(fresh); err != nil {
		return nil, err
	}
	if err := st.room(fresh); err != nil {
		return nil, err
	}
	st = m.stream(op.Key)
	a := &wire.Answer{}
	if len(op.Records) == 1 {
		a.FirstSeq, a.LastSeq = seen, seen
	}
	st.makeRoom(fresh)
	st.add(fresh, a, now)
	st.delay(len(fresh), op, now)
	st.sealed = st.sealed || op.Seal
	return a, nil
}

// transactOp makes a transaction of which one in a few can be done.
func (p *queuePlayer) transactOp(s *sessionModel) *wire.Transact {
	var steps []any
	for range 1 + p.rng.IntN(5) {
		key := pick(p.rng, modelKeys)
		switch p.rng.IntN(9) {
		case 0, 1:
			op := putOp(key)
			for range 1 + p.rng.IntN(2) {
				op.Records = append(op.Records, p.record(0))
			}
			op.Seal = p.rng.IntN(60) == 0
			p.delayPut(op)
			steps = append(steps, op)
		case 2, 3:
			op := takeOp(1+p.rng.Uint32N(2), key, pick(p.rng, modelKeys))
			op.Lease = p.rng.IntN(2) == 0
			p.boundLease(op)
			steps = append(steps, op)
		case 4:
			steps = append(steps, lookOp(key, 1+p.rng.Uint32N(3)))
		case 5:
			if op := p.settleOp(s, 4); op != nil {
				steps = append(steps, op)
			}
		case 6:
			steps = append(steps, p.updateOp(key))
		default:
			steps = append(steps, p.conditionOp(key))
		}
	}
	if len(steps) == 0 {
		steps = append(steps, lookOp("a", 1))
	}
	return tx(steps...)
}

func (p *queuePlayer) conditionOp(key string) *wire.Condition {
	return condition(key, func(c *wire.Condition) {
		ready := p.model.ready(key)
		switch p.rng.IntN(4) {
		case 0:
			c.AtLeast = p.rng.Uint64N(3)
		case 1:
			c.Empty = ptr(p.rng.IntN(2) == 0)
		case 2:
			if len(ready) > 0 {
				c.HeadSeq = ptr(ready[0].seq)
			}
		case 3:
			c.NewestSeq = ptr(p.rng.Uint64N(3))
		}
	})
}

// settleOp settles one in n of the receipts that a session has been given; nil
// where that is none.
func (p *queuePlayer) settleOp(s *sessionModel, n int) *wire.Settle {
	op := &wire.Settle{Return: p.rng.IntN(2) == 0}
	p.kindOfSettle(op)
	for _, d := range p.receiptsOf(s) {
		for _, r := range allRecords(d.answer) {
			if r.Fence != 0 && p.rng.IntN(n) == 0 {
				op.Receipts = append(op.Receipts, &wire.Receipt{Ino: r.Ino, Key: r.Key, Pos: r.Pos, Seq: r.Seq, Fence: r.Fence})
			}
		}
	}
	if len(op.Receipts) == 0 {
		return nil
	}
	return op
}

// allRecords are those of an answer and of its steps.
func allRecords(a *wire.Answer) []*wire.TakenRecord {
	records := slices.Clone(a.Records)
	for _, s := range a.Steps {
		records = append(records, s.Records...)
	}
	return records
}

// again is what a retry is answered with: with the deadlines of now and, of a
// transaction, without the records whose leases have ended.
func (p *queuePlayer) again(s *sessionModel, a *wire.Answer) *wire.Answer {
	a = proto.CloneOf(a)
	for _, step := range a.Steps {
		step.Records = slices.DeleteFunc(step.Records, func(r *wire.TakenRecord) bool {
			return r.Fence != 0 && p.model.find(s, r.Key, r.Fence) == nil
		})
	}
	for _, r := range allRecords(a) {
		if r.Fence != 0 {
			r.Deadline = p.model.find(s, r.Key, r.Fence).until
		}
	}
	return a
}
