package file

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// do does all steps, which were checked: an error is the store's.
func (t *transaction) do(cmd *wire.Command, steps []*wire.Step) (*wire.Answer, error) {
	answer := &wire.Answer{Steps: make([]*wire.Answer, len(steps))}
	answers := make([]wire.Answer, len(steps))
	for i := range steps {
		answer.Steps[i] = &answers[i]
	}
	keep := recognised(t.c, cmd)
	for i, step := range steps {
		if err := t.read(&t.steps[i], step, answer.Steps[i], keep); err != nil {
			return nil, err
		}
	}
	var stored *wire.StoredAnswer
	if keep { // before something removes the rows of what was taken
		var err error
		if stored, err = t.store(cmd, steps, answer); err != nil {
			return nil, err
		}
	}
	for phase := phaseSettle; phase < phases; phase++ {
		for i, step := range steps {
			if phaseOf(step) != phase {
				continue
			}
			if err := t.change(&t.steps[i], step, answer.Steps[i]); err != nil {
				return nil, err
			}
		}
	}
	if stored != nil {
		for i, a := range answer.Steps {
			s := stored.Steps[i]
			s.Ino, s.FirstSeq, s.LastSeq = a.Ino, a.FirstSeq, a.LastSeq
		}
	}
	return answer, nil
}

// read does a step that takes or looks.
func (t *transaction) read(s *txStep, step *wire.Step, answer *wire.Answer, keep bool) (err error) {
	switch op := step.Op.(type) {
	case *wire.Step_Take:
		answer.Ino = uint64(s.t.s.node.ino)
		answer.Records, err = t.m.handOut(t.c, s.t.s, op.Take, int(max(op.Take.Max, 1)), keep)
		if n := max(op.Take.Max, 1); err == nil && len(answer.Records) != int(n) {
			err = gearsfs.ErrDamaged.Because("inode %d, stream %q: %d records were taken, not %d", answer.Ino, s.t.key, len(answer.Records), n)
		}
	case *wire.Step_Look:
		if s.t.s != nil {
			answer.Ino = uint64(s.t.s.node.ino)
			answer.Records = takenRecords(s.t.s, s.looked)
		}
	}
	return err
}

// store keeps what a retry is answered with, as far as it is known, and holds
// back the rows that it refers to. A retry leaves out what was leased and is not
// held any more, for the steps can't be done again.
func (t *transaction) store(cmd *wire.Command, steps []*wire.Step, answer *wire.Answer) (*wire.StoredAnswer, error) {
	session, err := t.m.openSession(t.c, cmd)
	if err != nil {
		return nil, err
	}
	stored := &wire.StoredAnswer{Seq: cmd.Seq, Steps: make([]*wire.StoredAnswer, len(steps))}
	ofSteps := make([]wire.StoredAnswer, len(steps))
	for i, step := range steps {
		stored.Steps[i] = &ofSteps[i]
		records := answer.Steps[i].Records
		switch step.Op.(type) {
		case *wire.Step_Take:
			stored.Steps[i].Taken = referTo(records)
		case *wire.Step_Look:
			stored.Steps[i].Taken = keptRecords(records)
			for _, r := range records {
				if err := t.m.shareExtents(ExtentsOf(r.Extents)); err != nil {
					return nil, err
				}
			}
		}
	}
	t.m.keepAnswer(session, stored)
	t.c.stored = true
	return stored, nil
}

// keptRecords are references that hold their records themselves: of a look,
// whose records go their own ways.
func keptRecords(records []*wire.TakenRecord) []*wire.Reference {
	refs := make([]*wire.Reference, 0, len(records))
	for _, r := range records {
		refs = append(refs, &wire.Reference{
			Ino: r.Ino, Key: r.Key, Pos: r.Pos, Seq: r.Seq, Deliveries: r.Deliveries,
			Kept: []*wire.KeptRecord{{Pos: r.Pos, Seq: r.Seq, Row: &wire.RecordRow{
				Data: slices.Clone(r.Data), Type: r.Type, Time: r.Time, Extents: cloneExtents(r.Extents),
			}}},
		})
	}
	return refs
}

// change does a step that settles, updates or puts.
func (t *transaction) change(s *txStep, step *wire.Step, answer *wire.Answer) error {
	switch op := step.Op.(type) {
	case *wire.Step_Settle:
		return t.m.settleAll(t.c, op.Settle, s.settled)
	case *wire.Step_Update:
		if err := t.open(s, op.Update.Target, op.Update.Mode); err != nil {
			return err
		}
		if err := t.answerPut(s, op.Update.Record, answer); err != nil || len(s.fresh) == 0 {
			return err
		}
		return t.m.update(t.c, s.t.s, op.Update.Record, answer)
	case *wire.Step_Put:
		if err := t.open(s, op.Put.Target, op.Put.Mode); err != nil {
			return err
		}
		var only *wire.NewRecord
		if len(op.Put.Records) == 1 {
			only = op.Put.Records[0]
		}
		if err := t.answerPut(s, only, answer); err != nil {
			return err
		}
		return t.m.appendRecords(t.c, s.t.s, op.Put, s.fresh, answer)
	}
	return nil
}

// open makes the file and the stream of a step where they are still missing:
// a step before it may have made them.
func (t *transaction) open(s *txStep, target *wire.Target, mode uint32) (err error) {
	y, f := s.t, s.t.file
	if y.s == nil && f.n != nil {
		if y.s, err = t.m.stream(f.n, y.key); err != nil {
			return err
		}
	}
	f.n, y.s, err = t.m.openToPut(t.c, target, string(y.key), mode, f.n, y.s)
	return err
}

// answerPut begins the answer of a put or update: the seq of its only record,
// nil where it has several, where the id of that is known, maybe by an earlier
// step.
func (t *transaction) answerPut(s *txStep, only *wire.NewRecord, answer *wire.Answer) error {
	answer.Ino = uint64(s.t.file.n.ino)
	if only == nil || len(s.fresh) > 0 {
		return nil
	}
	seq := s.known
	if seq == 0 {
		row, err := t.m.knownID(s.t.s, only.Id)
		if err != nil {
			return err
		}
		seq = row.GetSeq()
	}
	answer.FirstSeq, answer.LastSeq = seq, seq
	return nil
}
