package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
)

type putOptions struct {
	node   string
	lines  bool
	nul    bool
	typ    string
	id     string
	delay  units.Duration
	at     timeFlag
	wait   units.Duration
	noWait bool
	seal   bool
	acked  bool
	format formatFlag
}

func (a *app) putCommand() *cobra.Command {
	var o putOptions
	c := &cobra.Command{
		Use:   "put FILE KEY RECORD | - | -l | -0",
		Short: "Append records to a stream",
		Long: `Append records to the stream KEY of FILE, making both where they are missing.
One record is the argument, exactly, or with - all of standard input. With -l each
line of standard input is a record, put as it arrives, with -0 whatever ends in NUL.
Status 0 means that all of it is on disk. On a full stream put waits.
A record with an --id that the stream has seen within its window is not put again, so
after a failure the same command may be repeated; with -l and -0 the records' ids are
ID/1, ID/2 and so on. With --until-acked put returns when no record of it is left: status 0
where all have been taken and acknowledged, else 1, and standard error says how many are
dead, were discarded, cleared or moved, or went with their stream or file.`,
		Example: `  gearsfs put gears/jobs data 'convert a.png'
  tar c src | gearsfs put :/backup src -
  find . -name '*.png' | gearsfs put gears/jobs data -l --seal
  gearsfs put gears/jobs data 'remind me' --delay 2h
  gearsfs put gears/jobs data -l --id import-7 < list`,
		Args: apart(between(2, 3), "wait no-wait", "lines null", "delay at"),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("id") && o.id == "" {
				return usagef("--id is empty")
			}
			return a.put(c.Context(), o, args)
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.BoolVarP(&o.lines, "lines", "l", false, "one record per line of standard input")
	f.BoolVarP(&o.nul, "null", "0", false, "one record per NUL-terminated piece of standard input")
	f.StringVar(&o.typ, "type", "", "a `NAME` for what the records are")
	f.StringVar(&o.id, "id", "", "put a record once: not again where the stream knows `ID`")
	f.Var(&o.delay, "delay", "the records can be taken when this long has passed")
	f.Var(&o.at, "at", "the records can be taken from then on: 2006-01-02T15:04:05Z, 15:04 or @SECONDS")
	f.Var(&o.wait, "wait", "give up after waiting this long for room (status 3)")
	f.BoolVar(&o.noWait, "no-wait", false, "give up at once where the stream is full (status 3)")
	f.BoolVar(&o.acked, "until-acked", false, "return when the records have been taken and acknowledged")
	f.BoolVar(&o.seal, "seal", false, "seal the stream behind the last record")
	f.VarP(&o.format, "output", "o", "print the first and last seq and the count as JSON")
	return c
}

func (a *app) put(ctx context.Context, o putOptions, args []string) error {
	many := o.lines || o.nul
	switch {
	case many && len(args) == 3 && args[2] != "-":
		return usagef("a RECORD and -l or -0 exclude each other")
	case !many && len(args) == 2:
		return usagef("what to put? a RECORD, - for standard input, -l for its lines or -0")
	}
	key, err := parseKey(args[1])
	if err != nil {
		return err
	}
	if err := o.checkNames(); err != nil {
		return err
	}
	t, err := a.openWithin(ctx, o.wait, args[0], o.node)
	if err != nil {
		return err
	}
	p := &putter{
		target: t, key: key, mode: 0o666 &^ a.umask, wait: o.wait, noWait: o.noWait,
		typ: o.typ, id: o.id, many: many, at: o.at.value, delay: o.delay.Value,
		recordsMax: gearsfs.BatchRecordsMax, bytesMax: gearsfs.BatchBytesMax,
	}
	if o.acked {
		p.watch = &ackWatch{target: t, key: key}
		if p.many && p.id != "" {
			p.recordsMax = 1 // then the answer also says where one is that was known
		}
	}
	switch {
	case many:
		err = p.putMany(ctx, a.in, terminator(o.nul), o.seal)
	case args[2] == "-":
		err = p.putWhole(ctx, a.in, o.seal)
	default:
		err = p.put(ctx, []gearsfs.NewRecord{{Data: []byte(args[2])}}, o.seal)
	}
	if err == nil && o.acked {
		err = p.watch.wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", t.arg, key, err)
	}
	if !o.format.json {
		return nil
	}
	line, err := json.Marshal(struct {
		First gearsfs.Seq `json:"first"`
		Last  gearsfs.Seq `json:"last"`
		Count uint64      `json:"count"`
	}{p.first, p.last, p.durable})
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return a.printf("%s\n", line)
}

// checkNames returns a usage error where a type or id is too long.
func (o *putOptions) checkNames() error {
	id := len(o.id)
	if id > 0 && (o.lines || o.nul) {
		id += len("/18446744073709551615")
	}
	switch {
	case len(o.typ) > gearsfs.KeyBytesMax:
		return usagef("--type has at most %d bytes", gearsfs.KeyBytesMax)
	case id > gearsfs.KeyBytesMax:
		return usagef("--id has at most %d bytes, with the numbers of -l and -0", gearsfs.KeyBytesMax)
	}
	return nil
}

func terminator(nul bool) byte {
	if nul {
		return 0
	}
	return '\n'
}

// putter puts records into one stream, in order, and counts those that are on
// disk.
type putter struct {
	target
	key    gearsfs.Key
	mode   uint32
	wait   units.Duration
	noWait bool
	typ    string
	id     string
	many   bool // ids are numbered
	at     time.Time
	delay  time.Duration
	watch  *ackWatch // nil: nobody waits until they are acknowledged

	// One put holds at most this much, by the limits that the stream had: a
	// batch larger than those would go in only when the stream is empty.
	recordsMax int
	bytesMax   uint64

	first, last gearsfs.Seq
	durable     uint64
	number      uint64 // of the last id
}

// putWhole puts all that in holds as one record.
func (p *putter) putWhole(ctx context.Context, in io.Reader, seal bool) error {
	data, err := readWhole(ctx, in)
	if err != nil {
		return err
	}
	return p.put(ctx, []gearsfs.NewRecord{{Data: data}}, seal)
}

// readWhole reads what is to be one record; of what is too large for one it
// reads a byte more than a record may have.
func readWhole(ctx context.Context, in io.Reader) ([]byte, error) {
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() { // a read of a terminal or pipe can't be ended: it goes with the process
		data, err := io.ReadAll(io.LimitReader(in, gearsfs.RecordBytesMax+1))
		done <- read{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("standard input: %w", r.err)
		}
		return r.data, nil
	}
}

// putMany puts each piece of in that ends in end as a record, as they arrive:
// what came while one put was under way goes with the next. Its error says how
// many records are on disk.
func (p *putter) putMany(ctx context.Context, in io.Reader, end byte, seal bool) error {
	p.learnLimits(ctx)
	err := p.drain(ctx, newIntake(in, end), seal)
	if err != nil {
		return fmt.Errorf("%w (%d records are on disk)", err, p.durable)
	}
	return nil
}

func (p *putter) drain(ctx context.Context, from *intake, seal bool) error {
	defer from.stop()
	for {
		records, err := from.next(ctx)
		ended := errors.Is(err, io.EOF)
		if len(records) > 0 || ended && seal {
			if err := p.put(ctx, records, ended && seal); err != nil {
				return err
			}
		}
		switch {
		case ended:
			return nil
		case err != nil:
			return err
		}
	}
}

// learnLimits keeps batches within the stream's limits. Who may not read them
// puts larger batches, which wait for more room at a time.
func (p *putter) learnLimits(ctx context.Context) {
	info, err := p.Stream(ctx, p.file(), p.key)
	if err != nil {
		return
	}
	if n := info.Limits.Records; n > 0 && n < uint64(p.recordsMax) {
		p.recordsMax = int(n)
	}
	if n := info.Limits.Bytes; n > 0 && n < p.bytesMax {
		p.bytesMax = n
	}
}

// put puts records, all of them or as many as go in before it fails, in as few
// batches as fit into the stream.
func (p *putter) put(ctx context.Context, records []gearsfs.NewRecord, seal bool) error {
	p.name(records)
	most := p.recordsMax
	for {
		n := p.batch(records, most)
		rest := records[n:]
		put := dgm.Put{
			File: p.file(), Key: p.key, Records: records[:n], Mode: p.mode,
			Seal: seal && len(rest) == 0, At: p.at, Delay: p.delay,
			// A batch that finds no room is halved until it does: then what
			// waits is one record, and no room is left unused.
			NoWait: p.noWait || n > 1,
		}
		err := p.putBatch(ctx, put)
		switch {
		case errors.Is(err, gearsfs.ErrFull) && n > 1:
			most = n / 2
			continue
		case err != nil:
			return err
		case len(rest) == 0:
			return nil
		}
		records = rest
		most = min(2*most, p.recordsMax)
	}
}

// name gives records their type and ids.
func (p *putter) name(records []gearsfs.NewRecord) {
	for i := range records {
		records[i].Type = p.typ
		if p.id == "" {
			continue
		}
		records[i].ID = p.id
		if p.many {
			p.number++
			records[i].ID = p.id + "/" + strconv.FormatUint(p.number, 10)
		}
	}
}

// batch returns how many of the records go into the next put.
func (p *putter) batch(records []gearsfs.NewRecord, most int) int {
	var bytes uint64
	for i, r := range records {
		bytes += uint64(len(r.Data))
		if i == most || i > 0 && bytes > p.bytesMax {
			return i
		}
	}
	return len(records)
}

func (p *putter) putBatch(ctx context.Context, put dgm.Put) error {
	waiting, cancel := waitContext(ctx, p.wait, "no room came")
	defer cancel()
	result, err := p.Put(waiting, put)
	if errors.Is(err, gearsfs.ErrMaybe) && p.id != "" {
		return gearsfs.ErrMaybe.Because("outcome unknown: repeat it with the same --id")
	}
	if err != nil {
		return cause(waiting, err)
	}
	p.durable += uint64(len(put.Records))
	if result.First == 0 { // nothing was put, or nothing new
		return nil
	}
	if p.first == 0 {
		p.first = result.First
	}
	p.last = max(p.last, result.Last)
	if p.watch != nil {
		p.watch.add(result.First, result.Last)
	}
	return nil
}

// waitContext bounds one wait by --wait; what says what did not happen.
func waitContext(ctx context.Context, wait units.Duration, what string) (context.Context, context.CancelFunc) {
	if !wait.Given {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, time.Now().Add(wait.Value), &waitError{what: what})
}
