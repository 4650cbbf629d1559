// Package wordcount counts the lines, words and bytes of a file on another
// node: GearsFS's distributed example, after the one of GearsOS.
//
// Node A, the sender, reads its input and puts it line by line into node B's
// file /wordcount/RUN, stream "lines", through a RemoteDGM. B's workers lease
// lines, count them and acknowledge the work done, with its counts, to A's own
// file /wordcount/RUN, stream "acks", over B's RemoteDGM back to A: the reverse
// of the connection that A made. At the end of its input A seals "lines". When
// these are drained, B puts its result to A, stream "result"; A adds up what
// was acknowledged, both files are removed and both sides are done.
//
//	A: /wordcount/RUN                          B: /wordcount/RUN
//	   in --- lines (many records a Put) ------> lines --+
//	                                                     | Take with a lease
//	   acks   <-- what was counted, and how much --------+ then Settle
//	   result <-- "lines" is sealed and drained ---------+
//
// Which runs there are, workers learn from B's queue /wordcount/jobs: one
// record, a line of JSON, for each run. A worker follows it without taking;
// whoever finds a job at its head whose run is over, removes it.
//
// A record of "lines" is as many whole lines as PieceBytes hold, and not one as
// in GearsOS, because a line costs some thirty times less that way (see
// BenchmarkTwoNodes); Options.LinesPerRecord sets it. What workers do is the same.
//
// # Bounded
//
// "lines" and "acks" are limited in bytes, so a sender that is faster than the
// workers waits in Put, and the memory of all three sides does not grow with
// the input. A line of more than PieceBytes travels as several records. Only
// Options.Top costs memory: one map entry for each distinct word, at A.
//
// # Exactly once
//
// A worker puts its acknowledgement before it settles the leases, and a Settle
// ends all of its leases or none. So a worker that dies in between leaves an
// acknowledgement of work that others do again, perhaps cut into other
// batches. A tells them apart by the fence of the lease:
//
//  1. Each record is settled by its last grant, and the acknowledgement of
//     that grant is at A before the record is settled.
//  2. Grants of one record have rising fences, so of two acknowledgements that
//     share a record only the one with the higher fence can be settled.
//  3. A batch counts as a whole or not at all, as its Settle did.
//
// Acknowledgements that their worker later says to be settled are added at
// once; those whose worker fell silent are decided by rule 2 at the end, when
// every record is settled. A checks then that each record was added once.
//
// # What a word is
//
// As LC_ALL=C wc has it: see Rule.
package wordcount
