package dgm

import (
	"context"
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// transactStepsMax bounds the steps of a transaction.
const transactStepsMax = 64

// Update implements Streams.
func (a api) Update(ctx context.Context, u Update) (PutResult, error) {
	op, path, err := updateOp(u)
	if err != nil {
		return PutResult{}, err
	}
	return a.put(ctx, &wire.Change{Path: path, Command: &wire.Command{Op: &wire.Command_Update{Update: op}}})
}

func updateOp(u Update) (*wire.Update, string, error) {
	t, path, err := target(u.File)
	if err != nil {
		return nil, "", err
	}
	records, err := newRecords(u.Key, []gearsfs.NewRecord{u.Record})
	if err != nil {
		return nil, "", err
	}
	return &wire.Update{
		Target: t, Key: string(u.Key), Record: records[0], Mode: u.Mode, IfSeq: seqToWire(u.IfSeq),
	}, path, nil
}

func seqToWire(seq *gearsfs.Seq) *uint64 {
	if seq == nil {
		return nil
	}
	n := uint64(*seq)
	return &n
}

// Transact implements Streams.
func (a api) Transact(ctx context.Context, tx Transact) ([]StepResult, error) {
	if len(tx.Steps) == 0 || len(tx.Steps) > transactStepsMax {
		return nil, gearsfs.ErrInvalid.Because("a transaction has 1 to %d steps", transactStepsMax)
	}
	op := &wire.Transact{Steps: make([]*wire.Step, len(tx.Steps))}
	paths := make([]string, len(tx.Steps))
	bytes := 0
	for i, s := range tx.Steps {
		var err error
		if op.Steps[i], paths[i], err = stepOp(s); err != nil {
			return nil, fmt.Errorf("step %d: %w", i+1, err)
		}
		bytes += op.Steps[i].SizeVT()
	}
	if bytes > gearsfs.BatchBytesMax {
		return nil, gearsfs.ErrTooBig.Because("%d bytes in one transaction, at most %d", bytes, gearsfs.BatchBytesMax)
	}
	answer, err := a.change(ctx, &wire.Change{
		Paths: paths, NoWait: tx.NoWait, Command: &wire.Command{Op: &wire.Command_Transact{Transact: op}},
	})
	if err != nil {
		return nil, err
	}
	if len(answer.Steps) != len(tx.Steps) {
		return nil, gearsfs.ErrProtocol.Because("a transaction of %d steps has %d answers", len(tx.Steps), len(answer.Steps))
	}
	results := make([]StepResult, len(answer.Steps))
	for i, step := range answer.Steps {
		results[i] = StepResult{Records: recordsFromWire(step.Records), Put: putResult(step)}
	}
	return results, nil
}

// stepOp encodes a step of a transaction.
func stepOp(s Step) (step *wire.Step, path string, err error) {
	set := 0
	step = new(wire.Step)
	if s.Condition != nil {
		set++
		var c *wire.Condition
		c, path, err = conditionOp(*s.Condition)
		step.Op = &wire.Step_Condition{Condition: c}
	}
	if s.Take != nil && err == nil {
		set++
		var t *wire.Take
		t, path, err = takeOp(*s.Take)
		step.Op = &wire.Step_Take{Take: t}
	}
	if s.Look != nil && err == nil {
		set++
		var l *wire.Look
		l, path, err = lookOp(*s.Look)
		step.Op = &wire.Step_Look{Look: l}
	}
	if s.Settle != nil && err == nil {
		set++
		var settle *wire.Settle
		settle, err = settleOp(*s.Settle)
		step.Op = &wire.Step_Settle{Settle: settle}
	}
	if s.Update != nil && err == nil {
		set++
		var u *wire.Update
		u, path, err = updateOp(*s.Update)
		step.Op = &wire.Step_Update{Update: u}
	}
	if s.Put != nil && err == nil {
		set++
		var p *wire.Put
		p, path, err = putOp(*s.Put)
		step.Op = &wire.Step_Put{Put: p}
	}
	if err == nil && set != 1 {
		err = gearsfs.ErrInvalid.Because("a step does one thing, not %d", set)
	}
	return step, path, err
}

func conditionOp(c Condition) (*wire.Condition, string, error) {
	t, path, err := target(c.File)
	if err == nil {
		err = c.Key.Check()
	}
	return &wire.Condition{
		Target: t, Key: string(c.Key), NewestSeq: seqToWire(c.Newest), HeadSeq: seqToWire(c.Head),
		Empty: c.Empty, AtLeast: c.AtLeast,
	}, path, err
}

func lookOp(l Look) (*wire.Look, string, error) {
	t, path, err := target(l.File)
	if err == nil {
		err = l.Key.Check()
	}
	if err != nil {
		return nil, "", err
	}
	max, err := count(l.Max)
	return &wire.Look{Target: t, Key: string(l.Key), Max: max}, path, err
}

// Move implements Streams.
func (a api) Move(ctx context.Context, f gearsfs.File, from, to gearsfs.Key, max uint64) (uint64, error) {
	t, path, err := target(f)
	if err != nil {
		return 0, err
	}
	for _, key := range []gearsfs.Key{from, to} {
		if err := key.Check(); err != nil {
			return 0, err
		}
	}
	if from == to {
		return 0, gearsfs.ErrInvalid.Because("records can't be moved to the stream that they are in")
	}
	if max == 0 { // what is there now, not what comes meanwhile
		info, err := a.Stream(ctx, f, from)
		if err != nil {
			return 0, err
		}
		if max = info.Records; max == 0 {
			return 0, nil
		}
	}
	var moved uint64
	for moved < max {
		answer, err := a.change(ctx, &wire.Change{Path: path, Command: &wire.Command{Op: &wire.Command_Move{
			Move: &wire.Move{Target: t, Key: string(from), To: string(to), Max: max - moved},
		}}})
		if err != nil {
			return moved, err
		}
		if answer.Count == 0 {
			break
		}
		moved += answer.Count
	}
	return moved, nil
}

// CopyFile implements Streams.
func (a api) CopyFile(ctx context.Context, from, to gearsfs.File) error {
	source, sourcePath, err := target(from)
	if err != nil {
		return err
	}
	dest, destPath, err := target(to)
	if err != nil {
		return err
	}
	_, err = a.change(ctx, &wire.Change{
		Paths:   []string{sourcePath, destPath},
		Command: &wire.Command{Op: &wire.Command_CopyFile{CopyFile: &wire.CopyFile{From: source, To: dest}}},
	})
	return err
}

// Near implements Node.
func (a api) Near(ctx context.Context, f gearsfs.File, keys []gearsfs.Key) ([]gearsfs.Key, error) {
	t, path, err := target(f)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 || len(keys) > takeKeysMax {
		return nil, gearsfs.ErrInvalid.Because("near misses are of 1 to %d keys", takeKeysMax)
	}
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Near{Near: &wire.Near{Target: t, Path: path, Keys: keysToWire(keys)}}})
	if err != nil {
		return nil, err
	}
	return keysFromWire(resp.Names), nil
}
