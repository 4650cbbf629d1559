package wordcount

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/gears"
)

// Where runs are kept, on both nodes.
const (
	dirName  = "wordcount"
	jobsName = "jobs"
	jobsPath = "/" + dirName + "/" + jobsName
)

// The streams of a run's file: linesKey on the node that counts, the others on
// the sender's.
const (
	linesKey  gears.Key = "lines"
	acksKey   gears.Key = "acks"
	resultKey gears.Key = "result"
)

// Bytes that "lines" and "acks" may hold before a put waits.
const (
	linesBytesMax = 16 << 20
	acksBytesMax  = 16 << 20
)

// A job tells workers of a run. It is a record of the data stream of jobsPath:
// one line of JSON.
type job struct {
	Run    string    // the file's name on both nodes
	Ino    gears.Ino // the file with the lines
	Remote string    // the remote of this node that leads to the sender
	Back   gears.Ino // the sender's own file, there
	Rule   Rule
	Words  bool // the sender wants to know how often each word was met
}

func (j job) record() (gears.NewRecord, error) {
	line, err := json.Marshal(j)
	return gears.NewRecord{Data: append(line, '\n'), Type: "job"}, err
}

// parseJob returns gears.ErrProtocol for a record that is no job.
func parseJob(r gears.Record) (job, error) {
	var j job
	if err := json.Unmarshal(r.Data, &j); err != nil {
		return job{}, gears.ErrProtocol.Because("record %d of %s is no job: %v", r.Place.Seq, jobsPath, err)
	}
	if gears.CheckName(j.Run) != nil || j.Ino == 0 || j.Back == 0 || j.Remote == "" {
		return job{}, gears.ErrProtocol.Because("record %d of %s is no job", r.Place.Seq, jobsPath)
	}
	return j, nil
}

const (
	modeDir  = 0o040000 | 0o1777 // whoever reaches the node may count there
	modeFile = 0o100000 | 0o666
)

// makeDir returns the directory of the runs, making it where it is missing.
func makeDir(ctx context.Context, m dgm.Manager) (gears.Ino, error) {
	attr, err := m.Make(ctx, gears.RootIno, dirName, dgm.Make{Mode: modeDir})
	if errors.Is(err, gears.ErrExists) || errors.Is(err, gears.ErrAccess) {
		attr, err = m.Lookup(ctx, gears.RootIno, dirName)
	}
	return attr.Ino, err
}

// gone reports whether err says that a file was removed.
func gone(err error) bool {
	return errors.Is(err, gears.ErrRemoved) || errors.Is(err, gears.ErrStale) || errors.Is(err, gears.ErrNotFound)
}

// sweepJobs removes the jobs at the head of the queue whose runs are over, and
// what is no job. Two that sweep at once do each other no harm: each looks at
// the jobs that it has leased.
func sweepJobs(ctx context.Context, node dgm.Manager) error {
	for {
		records, err := node.Take(ctx, dgm.Take{
			File: gears.At(jobsPath), Keys: []gears.Key{gears.DataKey}, NoWait: true, Lease: true,
		})
		if errors.Is(err, gears.ErrEmpty) || gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		j, err := parseJob(records[0])
		over := err != nil
		if !over {
			_, err = node.GetAttr(ctx, j.Ino)
			over = gone(err)
		}
		err = node.Settle(ctx, dgm.Settle{Receipts: []gears.Receipt{*records[0].Receipt}, Return: !over})
		if err != nil && !errors.Is(err, gears.ErrGone) {
			return err
		}
		if !over {
			return nil
		}
	}
}

// removeRun removes the file of a run, where it is still there.
func removeRun(ctx context.Context, m dgm.Manager, dir gears.Ino, run string) error {
	if err := m.Unlink(ctx, dir, run); err != nil && !gone(err) {
		return err
	}
	return nil
}

// tidyTimeout bounds the cleaning up after a run, which also goes on when the
// run was cancelled.
const tidyTimeout = 5 * time.Second

func tidyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
}
