// Package stream is the synchronized queue: records in order, handed out to
// whoever came first, over rows that are kept elsewhere.
//
// Queue is its deterministic core: it neither locks nor waits nor knows the
// time. Line is the waiting line without a goroutine per waiter. Stream puts
// both under one mutex: the queue for the goroutines of one process.
//
// # Where a record stands
//
//	      head                cursor                  tail
//	        |                    |                      |
//	gone    | out, out, gone ... | ready, ready, ready  |
//
//	          Append
//	 (nothing) -----> ready --Lease--> leased --Ack--> gone
//	                    |  ^             |
//	                Take|  +---Return----+
//	                    v    (in front of the cursor)
//	                   gone
//
// A record in front of the cursor lives only while it stands among the outs:
// leased, returned and ready again, or delayed. Taking moves the cursor and no
// row; the rows of what is gone are removed in bulk.
//
// A delayed record has its place in the order and waits there for its time: it
// was put with a delay, or returned with one. It stands among the outs, also
// where it lies behind the cursor, which passes it by.
//
// Invariants, which the tests check after every step:
//
//  1. head <= cursor <= tail, and nothing in front of head lives.
//  2. Ready = the returned outs + the records from cursor on that are no outs.
//  3. Leased, Returned and Delayed count the outs of that kind, DelayedAhead
//     the outs from cursor on, which are all delayed.
//  4. Bytes = the lengths of all ready, leased and delayed records.
//  5. The window is a prefix of the ready records from cursor on.
//  6. Rows in front of Cleaned are those of outs, or kept for an answer.
package stream
