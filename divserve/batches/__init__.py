"""OpenAI's Batch API: ``/v1/files`` and ``/v1/batches``, kept in a folder of this server.

flags      the command-line flags
shapes     what clients send: the bodies, and pages of lists
folder     ids, files that are replaced as a whole, bytes in use
files      uploaded files and results
store      batches, as every process reads them
upload     a multipart body on its way to the disk
lines      the lines of an input file
journal    the answers, which are also the record of what has been answered
room       how many rows the lines may take beside clients that wait
call       one line's request through the server's own application
parts      what all batches of a process use
answering  the lines of one batch under way
runner     one batch, from its validation to its results
owner      the process that runs the batches
routes     the routes, and how they are installed

Every API process reads and writes the folder; one of them, which holds its lock, runs the batches.
"""
