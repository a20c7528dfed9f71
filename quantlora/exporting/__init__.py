"""The merged model as a plain checkpoint."""
